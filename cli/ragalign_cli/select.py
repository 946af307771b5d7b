"""`ragalign select`: greedy search for constant demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, options, query_options

if TYPE_CHECKING:
    from ragalign.studies.selection_result import SelectionResult


def select(
    pool: Annotated[list[str], typer.Option(metavar="FILE", help="File of candidate demonstrations. Repeatable.")],
    queries: options.PromptSet,
    model: options.Model,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="reference-likelihood, exact-match, or a function as FILE.py:FUNCTION.")
    ],
    out: options.OutFolder,
    recipe: Annotated[str, typer.Option(help="The recipe whose constant demonstrations to start from.")] = "urial",
    add: Annotated[int, typer.Option(help="Maximum demonstrations to add.")] = 3,
    candidates: Annotated[
        int, typer.Option(help="Candidates to try: drawn from the pool with the seed, or the best by --gains.")
    ] = 20,
    gains: Annotated[
        Optional[Path],
        typer.Option(
            metavar="GAINS",
            help="The output of `ragalign utility score`: the candidates are those that help most alone.",
            show_default=False,
        ),
    ] = None,
    max_evaluations: Annotated[int, typer.Option(help="Maximum sets of demonstrations to evaluate.")] = 100,
    held_out: Annotated[float, typer.Option(help="Share of the questions held out from the search.")] = 0.5,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    seed: Annotated[int, typer.Option(help="Seed for decoding, candidates and held-out questions.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Add constant demonstrations that improve a metric, and check the gain on held-out questions.

    Each round tries every candidate after the demonstrations chosen so far and keeps the best. The optimism of the
    search is its gain on its own questions minus the gain on those held out. If it is interrupted, run
    the same command again to continue.

    \b
    Examples:
      ragalign select --pool answers.jsonl --queries dev.jsonl \\
          --metric exact-match --model ./base --out found
      ragalign bench --recipe urial --recipe found/recipe.toml --model ./base \\
          --queries test.jsonl --out compared
    """
    from dataclasses import replace

    from ragalign.bench.scoring import make_scorer
    from ragalign.bench.session import Engine
    from ragalign.generator import Generator
    from ragalign.pool import Pool
    from ragalign.recipes import Recipe
    from ragalign.studies.selection import Search
    from ragalign.studies.selection_result import SearchOptions
    from ragalign.tokenization import Tokenizer
    from ragalign.utility import GainFiles

    console.be_quiet(quiet)
    limits = SearchOptions(add, candidates, max_evaluations, held_out, seed)
    scorer = make_scorer(metric)
    begin = Recipe.load(recipe)
    changed = options.decoding(begin.decoding, max_tokens=max_new_tokens, temperature=temperature, seed=seed)
    engine = Engine(model, backend, tokenizer, context_length, options.engine(dtype, tensor_parallel, gpu_memory))
    engine.check()
    search = Search(
        out,
        replace(begin, decoding=changed),
        Pool.load(pool),
        query_options.read_cases(queries, first, field, metadata),
        scorer,
        model=model,
        options=limits,
        ranking=None if gains is None else GainFiles(gains).read().ranking(),
        others=engine.settings,
    )
    generators: list[Generator] = []

    def start() -> tuple[Generator, Tokenizer]:
        loaded = engine.load_tokenizer()
        console.note(f"starting the engine for {model} (half a minute on two CPU cores) ...")
        generators.append(engine.start())
        return generators[0], loaded

    try:
        found = search.run(start, on_evaluation=lambda n, most: console.note(f"set {n} of at most {most}"))
    except KeyboardInterrupt:
        console.note(f"interrupted; the evaluations are kept in {out}: run the same command again to continue")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    finally:
        for generator in generators:
            generator.close()
    if json:
        console.print_json(found.to_dict())
    else:
        _show(found)
    console.note(f"-> {out / 'recipe.toml'}")


def _show(found: SelectionResult) -> None:
    from ragalign.reports.formats import interval, number, signed

    names = {demonstration.id: demonstration for demonstration in found.constants}
    rows = []
    for place, step in enumerate(found.steps, start=found.n_begun + 1):
        text = console.shortened(names[step.added].instruction, 60) if step.added else "no candidate was better"
        note = "" if step.is_complete else "stopped by --max-evaluations"
        rows.append([place, text, number(step.score, "points"), step.n_tried, note])
    console.print_table(
        [("place", "right"), ("added", "left"), ("score", "right"), ("tried", "right"), ("", "left")], rows
    )
    gain, held = found.search_gain, found.held_out_gain
    console.heading("Gain over the initial demonstrations")
    rows = [
        ["questions of the search", signed(gain.value, "points"), interval(gain, "points"), gain.n],
        ["held-out questions", signed(held.value, "points"), interval(held, "points"), held.n],
        ["optimism of the search", signed(found.optimism, "points"), "", ""],
    ]
    console.print_table([("", "left"), ("gain", "right"), ("95 % interval", "right"), ("prompts", "right")], rows)
