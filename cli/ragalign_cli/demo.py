"""`ragalign demo`: show what retrieval does, in minutes."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, demo_real, options, prompts
from ragalign_cli.bench_steps import answer
from ragalign_cli.bench_tables import show_costs, show_quality
from ragalign_cli.demo_real import SideBySide

if TYPE_CHECKING:
    from ragalign.types import Completion

_QUESTIONS = (
    "How do I ask my manager for a raise without sounding ungrateful?",
    "Why is the sky blue at noon and red in the evening?",
    "Write a Python function that tells whether a word is a palindrome.",
)
_COMPARED = ("zero-shot", "fixed", "random", "retrieved")


def demo(
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder, GGUF file or hub id of a base model; by default the packaged models.", show_default=False
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(help="With --model: a recipe's name or TOML file.")] = "ica",
    first: Annotated[
        int, typer.Option(metavar="N", min=1, help="Without --model: number of questions of the testbed.")
    ] = 100,
    backend: options.Backend = "auto",
    context_length: options.ContextLength = None,
    max_new_tokens: Annotated[int, typer.Option(help="With --model: maximum tokens per answer.")] = 60,
    real: Annotated[
        Optional[bool],
        typer.Option(
            "--real/--no-real",
            help="Without --model: also run the packaged base model; the default without --json.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON; with --model, one JSON object per question.")
    ] = False,
) -> None:
    """See what retrieval does.

    First, a real base model (Gemma 3 270M, from the extra `models`) answers three questions with and without
    retrieved demonstrations. Then comes the testbed: a tiny base model answers questions of a closed world, whose right
    answers are only in the demonstrations, with no, three fixed, nine random and nine retrieved demonstrations. With
    --model, your model answers three questions with demonstrations of the starter pool.

    \b
    Examples:
      ragalign demo
      ragalign demo --model meta-llama/Llama-3.2-1B --max-new-tokens 300
    """
    try:
        with tempfile.TemporaryDirectory(prefix="ragalign-demo-") as folder:
            if model is None:
                answered = _real(Path(folder, "starter"), json=json) if real or (real is None and not json) else None
                _testbed(Path(folder, "testbed"), first, backend, answered, json=json)
            else:
                _questions(Path(folder), model, recipe, backend, context_length, max_new_tokens, json=json)
    except KeyboardInterrupt:
        console.note("interrupted")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    if not json:
        _next_steps()


def _real(folder: Path, *, json: bool) -> list[SideBySide] | None:
    """Answer with the packaged base model; warn and return None if it is not installed."""
    from ragalign.errors import MissingDependencyError

    try:
        answered = demo_real.answer(_QUESTIONS, folder)
    except MissingDependencyError as error:
        console.warning(f"no real model in this demo: {error}")
        return None
    if not json:
        demo_real.show(answered)
    return answered


def _testbed(folder: Path, n: int, backend: str, answered: list[SideBySide] | None, *, json: bool) -> None:
    """Answer the testbed's questions with four recipes, and show one question in full and the figures."""
    from ragalign.aligner import Aligner
    from ragalign.bench.benchmark import Benchmark
    from ragalign.bench.conditions import MAIN

    console.note("indexing the testbed's 2,000 demonstrations ...")
    benchmark = Benchmark.of_testbed(folder, backend, first=n, names=_COMPARED, rounds=3, title="demo")
    answer(benchmark)
    bench = benchmark.evaluate().report.bench
    assert bench is not None  # a benchmark always has one
    if json:
        real = {} if answered is None else {"answers": [answer.to_dict() for answer in answered]}
        console.print_json(bench.to_dict() | real)
        return
    run = benchmark.run
    [*_, retrieved] = run.conditions
    case, tokenizer = run.cases.cases[0], benchmark.engine.load_tokenizer()
    aligner = Aligner.from_recipe(retrieved.recipe, index=run.indexes[MAIN], tokenizer=tokenizer)
    console.heading(case.query.text)
    prompts.show_demonstrations(aligner.pack(case.query.text))
    answers = {
        answered_condition.condition.name: str(answered_condition.rows[0][case.id]["response"])
        for answered_condition in run.answered()
    }
    out = console.stdout()
    for name in _COMPARED:
        right = "[green]right[/green]" if answers[name].strip() in case.references[0] else "[red]wrong[/red]"
        console.heading(f"answer, {name}")
        out.print(answers[name], markup=False)
        out.print(right)
    show_quality(bench)
    show_costs(bench)
    console.note(
        f"{len(run.cases.cases)} questions. Each topic has its own style, which the model can only learn from "
        "demonstrations of the same topic. This shows that the pipeline works, and nothing about real models."
    )


def _questions(
    folder: Path, model: str, recipe: str, backend: str, context_length: int | None, max_new_tokens: int, *, json: bool
) -> None:
    """Index the starter pool, retrieve for three questions, pack and decode."""
    from ragalign.aligner import Aligner
    from ragalign.encoders import Encoder
    from ragalign.indexes import Index
    from ragalign.pool import Pool
    from ragalign.recipes import Recipe, data_folder

    chosen = Recipe.load(recipe)
    settings = options.decoding(chosen.decoding, max_tokens=max_new_tokens, seed=0)
    pool = Pool.load(data_folder() / "starter.jsonl")
    encoder = Encoder.load()
    Index.build(pool, encoder, show_progress=True).save(folder / "index")
    index = Index.open(folder / "index", encoder=encoder)
    console.note(f"indexed the starter pool: {len(index)} demonstrations, encoder {encoder.id}")
    console.note("starting the engine (half a minute on two CPU cores) ...")
    with Aligner.from_recipe(
        replace(chosen, decoding=settings), index=index, model=model, backend=backend, context_length=context_length
    ) as aligner:
        completions = aligner.generate(_QUESTIONS)
        length = aligner.generator.context_length
    for question, completion in zip(_QUESTIONS, completions, strict=True):
        if json:
            console.print_json(_record(question, completion, length))
        else:
            _show(question, completion, length)


def _record(question: str, completion: Completion, length: int | None) -> dict[str, object]:
    prompt = prompts.prompt_record("0", completion.prompt, length)
    return {"question": question, "response": completion.text, "finish_reason": completion.finish_reason} | {
        "n_cached_tokens": completion.n_cached_tokens,
        "prompt": prompt,
    }


def _show(question: str, completion: Completion, length: int | None) -> None:
    console.heading(question)
    prompts.show_demonstrations(completion.prompt)
    prompts.show_budget(completion.prompt, length)
    out = console.stdout()
    if completion.prompt.dropped:
        out.print(f"[dim]not used: {prompts.count_dropped(completion.prompt)}[/dim]")
    cached = (
        "" if completion.n_cached_tokens is None else f", {completion.n_cached_tokens:,} prompt tokens from the cache"
    )
    console.heading("answer")
    out.print(completion.text, markup=False)
    out.print(f"[dim]{completion.n_output_tokens} tokens in {completion.latency_s:.1f} s{cached}[/dim]")


def _next_steps() -> None:
    console.heading("next")
    out = console.stdout()
    for what, command in (
        ("run the whole benchmark", "ragalign bench --testbed --out testbed"),
        ("index your own demonstrations", "ragalign index --pool answers.jsonl --out indexes/mine"),
        ("see what is retrieved", 'ragalign search indexes/mine "a question"'),
        ("see a packed prompt", 'ragalign pack indexes/mine "a question" --tokenizer MODEL --show'),
        ("chat with a base model", "ragalign chat indexes/mine --model MODEL"),
    ):
        out.print(f"{what:<30} [bold]{command}[/bold]")
