"""`ragalign demo`: the whole path on real parts, in a minute."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, decoding, prompts

if TYPE_CHECKING:
    from ragalign.types import Completion

_QUESTIONS = (
    "How do I ask my manager for a raise without sounding ungrateful?",
    "Why is the sky blue at noon and red in the evening?",
    "Write a Python function that tells whether a word is a palindrome.",
)


def demo(
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder or hub id of a base model; a toy model is made if none is given.", show_default=False
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a TOML file.")] = "ica",
    backend: decoding.Backend = "auto",
    context_length: decoding.ContextLength = None,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 60,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per question.")] = False,
) -> None:
    """Index the starter pool, retrieve for three questions, pack and decode.

    \b
    Examples:
      ragalign demo
      ragalign demo --model meta-llama/Llama-3.2-1B --max-new-tokens 300
    """
    from ragalign.aligner import Aligner
    from ragalign.encoders import Encoder
    from ragalign.indexes import Index
    from ragalign.pool import Pool
    from ragalign.recipes import Recipe, data_folder

    chosen = Recipe.load(recipe)
    settings = decoding.override(chosen.decoding, max_tokens=max_new_tokens, seed=0)
    with tempfile.TemporaryDirectory(prefix="ragalign-demo-") as name:
        folder = Path(name)
        pool = Pool.load(data_folder() / "starter.jsonl")
        encoder = Encoder.load()
        Index.build(pool, encoder, show_progress=True).save(folder / "index")
        index = Index.open(folder / "index", encoder=encoder)
        console.note(f"indexed the starter pool: {len(index)} demonstrations, encoder {encoder.id}")
        toy = model is None
        if model is None:
            from ragalign.generation import build_toy_model

            model = str(build_toy_model(folder / "toy-model", pool.responses))
            console.note(
                "made a toy model: Llama architecture, two layers, RANDOM weights. It shows that the path works; "
                "its answers are word salad. Give --model for real ones."
            )
        console.note("starting the engine (half a minute on two CPU cores) ...")
        with Aligner.from_recipe(
            chosen, index=index, model=model, backend=backend, context_length=context_length
        ) as aligner:
            completions = aligner.generate(_QUESTIONS, decoding=settings)
            length = aligner.generator.context_length
    for question, completion in zip(_QUESTIONS, completions, strict=True):
        if json:
            console.print_json(_record(question, completion, length))
        else:
            _show(question, completion, length, toy=toy)
    if not json:
        _next_steps()


def _record(question: str, completion: Completion, length: int | None) -> dict[str, object]:
    prompt = prompts.prompt_record("0", completion.prompt, length)
    return {"question": question, "response": completion.text, "finish_reason": completion.finish_reason} | {
        "n_cached_tokens": completion.n_cached_tokens,
        "prompt": prompt,
    }


def _show(question: str, completion: Completion, length: int | None, *, toy: bool) -> None:
    console.heading(question)
    prompts.show_demonstrations(completion.prompt)
    prompts.show_budget(completion.prompt, length)
    out = console.stdout()
    if completion.prompt.dropped:
        out.print(f"[dim]not used: {prompts.count_dropped(completion.prompt)}[/dim]")
    cached = (
        "" if completion.n_cached_tokens is None else f", {completion.n_cached_tokens:,} prompt tokens from the cache"
    )
    console.heading(f"answer{' of the toy model (random weights)' if toy else ''}")
    out.print(completion.text, markup=False)
    out.print(f"[dim]{completion.n_output_tokens} tokens in {completion.latency_s:.1f} s{cached}[/dim]")


def _next_steps() -> None:
    console.heading("next")
    out = console.stdout()
    for what, command in (
        ("index your own demonstrations", "ragalign index --pool answers.jsonl --out indexes/mine"),
        ("see what is retrieved", 'ragalign search indexes/mine "a question"'),
        ("see a packed prompt", 'ragalign pack indexes/mine "a question" --tokenizer MODEL --show'),
        ("chat with a base model", "ragalign chat indexes/mine --model MODEL"),
    ):
        out.print(f"{what:<30} [bold]{command}[/bold]")
