"""`ragalign compare-ift`: compare demonstrations in context with fine-tuning on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, options, query_options

if TYPE_CHECKING:
    from ragalign.studies.fine_tuning.figures import BreakEven, CurvePoint

_METHODS = ("zero-shot", "constant", "retrieved", "retrieved-pool", "lora", "full")
_SIZES = (3, 10, 30, 100, 300, 1000)


def compare_ift(
    base: Annotated[str, typer.Option(help="Folder, GGUF file or hub id of the base model.", show_default=False)],
    queries: Annotated[
        str,
        typer.Option(
            help="Questions with a `reference`: a file, - for standard input, or the name of a published set.",
            show_default=False,
        ),
    ],
    out: options.OutFolder,
    pool: Annotated[
        Optional[list[str]],
        typer.Option(metavar="FILE", help="Demonstrations, as for `ragalign index`. Repeatable.", show_default=False),
    ] = None,
    index: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="An index, instead of --pool.", show_default=False)
    ] = None,
    size: Annotated[
        Optional[list[int]],
        typer.Option(
            metavar="N", min=1, help="Number of demonstrations; by default 3, 10, 30, 100, 300 and 1000. Repeatable."
        ),
    ] = None,
    method: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help=f"One of {', '.join(_METHODS)}; by default all. Repeatable."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Random draws per size.")] = 3,
    recipe: Annotated[
        str,
        typer.Option(help="A recipe's name or TOML file, for the template, packing and retriever."),
    ] = "ica",
    metric: Annotated[
        str, typer.Option(help="exact-match, reference-likelihood, ..., or a function: file.py:function.")
    ] = "exact-match",
    verdicts: Annotated[
        Optional[Path],
        typer.Option(
            help="Output of `ragalign judge run` on OUT/answers: use a judge's scores instead of the metric's.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[Optional[str], typer.Option(help="The encoder for --pool.", show_default=False)] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    max_new_tokens: options.MaxNewTokens = None,
    epochs: Annotated[float, typer.Option(help="Passes over the training data.")] = 15,
    batch_size: Annotated[int, typer.Option(help="Demonstrations per step.")] = 32,
    per_device: Annotated[int, typer.Option(help="Demonstrations per device at a time.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of full fine-tuning.")] = 1e-5,
    lora_learning_rate: Annotated[float, typer.Option(help="Learning rate of adapters.")] = 2e-4,
    lora_rank: Annotated[int, typer.Option(help="Rank of adapters.")] = 16,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Train in mixed precision.")] = False,
    optimizer: Annotated[
        str, typer.Option(help="Optimizer, as transformers names it; adafactor needs little memory.")
    ] = "adamw_torch",
    backend: options.Backend = "auto",
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the fine-tuned models.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare demonstrations in context with fine-tuning on the same demonstrations (Zhao et al. 2024).

    For each size and seed, the same demonstrations go into prompts (as constants, or retrieved among them) and
    into training (of adapters, and of all weights; loss on responses only). All methods answer the same prompts. If it
    is interrupted, run the same command again to continue.

    \b
    Examples:
      ragalign compare-ift --base mistralai/Mistral-7B-v0.1 --pool lima.jsonl \\
          --queries q.jsonl --metric score.py:score --bfloat16 --out ift
      ragalign compare-ift --base base --index indexes/mine --queries q.jsonl \\
          --size 10 --size 100 --seeds 2 --out ift
    """
    from datetime import UTC, datetime

    from ragalign.bench.scoring import make_scorer
    from ragalign.encoders import Encoder
    from ragalign.errors import ConfigError
    from ragalign.indexes import Index
    from ragalign.pool import Pool
    from ragalign.runs import write_json
    from ragalign.studies.fine_tuning.figures import break_even, points
    from ragalign.studies.fine_tuning.judged import with_verdicts
    from ragalign.studies.fine_tuning.page import write_pages
    from ragalign.studies.fine_tuning.running import FineTuningSettings, run
    from ragalign.studies.fine_tuning.training import Training

    console.be_quiet(quiet)
    if (index is None) == (not pool):
        raise ConfigError("give the demonstrations with either --pool or --index")
    engine_options = options.engine(dtype, tensor_parallel, gpu_memory)
    options.check_model(base, backend, None, engine_options)
    settings = FineTuningSettings(
        base=base,
        recipe=recipe,
        methods=tuple(method or _METHODS),
        sizes=tuple(size or _SIZES),
        seeds=seeds,
        metric=metric,
        training=Training(
            epochs=epochs,
            batch_size=batch_size,
            per_device=per_device,
            learning_rate=learning_rate,
            lora_learning_rate=lora_learning_rate,
            lora_rank=lora_rank,
            bfloat16=bfloat16,
            optimizer=optimizer,
        ),
        max_tokens=max_new_tokens,
        backend=backend,
        options=engine_options,
        keep_models=keep_models,
    )
    asked = [case.query for case in query_options.read_cases(queries, first, field, metadata).cases]
    if index is not None:
        opened = Index.open(index)
    else:
        loaded = Pool.from_demonstrations(demonstration for source in pool or () for demonstration in Pool.load(source))
        opened = Index.build(loaded, Encoder.load(encoder) if encoder else Encoder.load(), show_progress=True)
    results = run(settings, opened, asked, out)
    if verdicts is not None:
        results = with_verdicts(results, verdicts)
    lower_is_better = verdicts is None and make_scorer(metric).lower_is_better
    found = points(results)
    pairs = break_even(found)
    document = {
        "base": base,
        "recipe": recipe,
        "metric": metric if verdicts is None else str(verdicts),
        "lower_is_better": lower_is_better,
        "n_prompts": len(asked),
        "seeds": seeds,
        "points": [point.to_dict() for point in found],
        "break_even": [pair.to_dict() for pair in pairs],
    }
    write_json(out / "compare-ift.json", document)
    write_pages(settings, found, pairs, len(asked), out, created=datetime.now(UTC), lower_is_better=lower_is_better)
    if json:
        console.print_json(document)
    else:
        _show(found, pairs, lower_is_better=lower_is_better)
        console.note(f"-> {out}/compare-ift.html, compare-ift.json, quality.svg; answers in {out}/answers")


def _show(found: list[CurvePoint], pairs: list[BreakEven], *, lower_is_better: bool) -> None:
    from ragalign.reports.formats import interval, number
    from ragalign.studies.fine_tuning.page import queries

    console.heading("Quality (lower is better) and cost" if lower_is_better else "Quality and cost")
    columns = [("method", "left"), ("N", "right"), ("score", "right"), ("95 % interval", "right")]
    columns += [("shown", "right"), ("prompt tokens", "right"), ("ms/answer", "right"), ("training s", "right")]
    console.print_table(
        columns,
        [
            (
                point.method,
                "" if point.n is None else f"{point.n:,}",
                number(point.quality.value, "points"),
                interval(point.quality, "points"),
                number(point.demonstrations, "points"),
                number(point.prompt_tokens, "words"),
                number(1000 * point.answer_s, "words"),
                number(point.training_s, "%") if point.training_tokens else "",
            )
            for point in found
        ],
    )
    if pairs:
        console.heading("Queries after which fine-tuning is cheaper")
        console.print_table(
            [("fine-tuned", "left"), ("in context", "left"), ("by seconds", "right"), ("by tokens", "right")],
            [
                (pair.tuned.name, pair.in_context.name, queries(pair.by_seconds), queries(pair.by_tokens))
                for pair in pairs
            ],
        )
