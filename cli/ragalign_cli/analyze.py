"""`ragalign analyze`: measure what alignment changes in a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from ragalign_cli import console, options, query_options
from ragalign_cli.help import Command, group

if TYPE_CHECKING:
    from ragalign.studies.shift.figures import ShiftFigures

app = group("Measure what alignment changes in a model.")

# transformers returns whole vocabularies as tensors, which is fast; vLLM converts every value to a Python number.
_VLLM_TOP_K = 100


@app.callback()
def analyze() -> None:
    """Measure what alignment changes in a model."""


@app.command(cls=Command)
def shift(
    base: Annotated[str, typer.Option(help="Folder, GGUF file or hub id of the base model.", show_default=False)],
    aligned: Annotated[str, typer.Option(help="Folder, GGUF file or hub id of the aligned model.", show_default=False)],
    queries: Annotated[
        str,
        typer.Option(help="A file of questions, - for standard input, or a published set's name.", show_default=False),
    ],
    out: options.OutFolder,
    recipe: Annotated[
        Optional[list[str]],
        typer.Option(
            help="Also give the base model the prompts of this recipe (a name or TOML file). Repeatable; by default "
            "zero-shot, urial and, with --index, ica.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[Optional[Path], typer.Option(metavar="DIR", help="The index that recipes retrieve from.")] = None,
    aligned_recipe: Annotated[
        Optional[str],
        typer.Option(
            help="The recipe for the aligned model's prompts; by default its own chat template, or zero-shot if it has "
            "none.",
            show_default=False,
        ),
    ] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    max_new_tokens: Annotated[int, typer.Option(help="Maximum tokens per answer.")] = 512,
    top_k: Annotated[
        Optional[int],
        typer.Option(
            help="Compare only the most probable tokens of each model: KL becomes a lower bound; ranks and "
            "probabilities stay exact. 0 compares whole vocabularies, the default with transformers; the default "
            f"with vllm is {_VLLM_TOP_K}.",
            show_default=False,
        ),
    ] = None,
    align_by_text: Annotated[
        bool,
        typer.Option(
            "--align-by-text", help="Compare models with different tokenizers wherever both split the text alike."
        ),
    ] = False,
    categories: Annotated[
        Optional[Path],
        typer.Option(
            help='Your own categories of tokens: TOML, name = ["regular expression", ...].', show_default=False
        ),
    ] = None,
    backend: options.Backend = "auto",
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the tokens that a base model would not have written.

    This is the token distribution shift of Lin et al. (2023).

    The aligned model answers greedily, and the base model scores every token of the answer in the same context: a token
    is unshifted if it is the base model's first choice, marginal if its second or third, and shifted otherwise.
    Repeating this with the prompts of each recipe shows how much of the shift in-context alignment closes.

    \b
    Examples:
      ragalign analyze shift --base meta-llama/Llama-2-7b-hf \\
          --aligned meta-llama/Llama-2-7b-chat-hf --queries q.jsonl \\
          --index indexes/lima --out shift
      ragalign analyze shift --base base --aligned tuned --queries q.jsonl \\
          --recipe zero-shot --out shift --json
    """
    from datetime import UTC, datetime

    from ragalign.runs import write_json
    from ragalign.studies.shift.figures import figures
    from ragalign.studies.shift.kinds import DEFAULT_CATEGORIES, load_categories
    from ragalign.studies.shift.page import kl_note, write_pages
    from ragalign.studies.shift.running import ShiftSettings, run

    console.be_quiet(quiet)
    engine_options = options.engine(dtype, tensor_parallel, gpu_memory)
    for model in (base, aligned):
        options.check_model(model, backend, None, engine_options)
    settings = ShiftSettings(
        base=base,
        aligned=aligned,
        recipes=tuple(recipe) if recipe else ("zero-shot", "urial", *(("ica",) if index else ())),
        aligned_recipe=aligned_recipe,
        index=None if index is None else str(index),
        max_tokens=max_new_tokens,
        top_k=_top_k(top_k, backend),
        align_by_text=align_by_text,
        backend=backend,
        options=engine_options,
        categories=DEFAULT_CATEGORIES if categories is None else load_categories(categories),
    )
    asked = [case.query for case in query_options.read_cases(queries, first, field, metadata).cases]
    outcome = run(settings, asked, out)
    shown = figures(outcome)
    result = {
        "base": base,
        "aligned": aligned,
        "prompts": queries,
        "n_prompts": len(asked),
        "n_answer_tokens": sum(len(answer.token_ids) for answer in outcome.answers),
        "top_k": settings.top_k,
        "kl": kl_note(settings, outcome),
        "contexts": [context.to_dict() for context in shown],
        "failures": [{"context": name, "id": id_, "reason": reason} for name, id_, reason in outcome.failures],
    }
    write_json(out / "shift.json", result)
    write_pages(settings, outcome, shown, out, created=datetime.now(UTC))
    for name, id_, reason in outcome.failures:
        console.warning(f"{name}, query {id_}: {reason}")
    if json:
        console.print_json(result)
    else:
        _show(shown)
        console.note(f"-> {out}/shift.html, shift.json and the plots as SVG")


def _top_k(given: int | None, backend: str) -> int | None:
    from ragalign._optional import is_installed

    if given is None:
        engine = backend == "vllm" or (backend == "auto" and is_installed("vllm"))
        return _VLLM_TOP_K if engine else None
    return given or None


def _show(shown: list[ShiftFigures]) -> None:
    from ragalign.reports.formats import interval, number
    from ragalign.studies.shift.page import visible

    def percent(estimate: Any) -> str:
        scaled = estimate.scaled(100)
        return f"{number(scaled.value, '%')} ({interval(scaled, '%')})"

    console.heading("Tokens of the aligned model by their rank for the base model, %")
    columns = [("context", "left"), ("positions", "right"), ("unshifted", "right"), ("marginal", "right")]
    columns += [("shifted", "right"), ("closed", "right"), ("KL, nats", "right")]
    rows = []
    for context in shown:
        shares = [percent(context.shares[kind]) for kind in ("unshifted", "marginal", "shifted")]
        closed = "" if context.closed is None else percent(context.closed)
        rows.append((context.context, f"{context.n_positions:,}", *shares, closed, number(context.kl.value, "nats")))
    console.print_table(columns, rows)
    kinds = sorted({kind for context in shown for kind in context.by_category})
    console.heading("Shifted tokens by category, %")
    console.print_table(
        [("category", "left"), *((context.context, "right") for context in shown)],
        [
            (
                kind,
                *(
                    number(100 * context.by_category[kind].value, "%") if kind in context.by_category else ""
                    for context in shown
                ),
            )
            for kind in kinds
        ],
    )
    if shown[0].tokens:
        console.heading(f"Most shifted tokens, {shown[0].context}")
        console.print_table(
            [("token", "left"), ("category", "left"), ("shifted", "right"), ("of", "right")],
            [(visible(token.text), token.category, token.n_shifted, token.n) for token in shown[0].tokens[:10]],
        )
