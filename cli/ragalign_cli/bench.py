"""`ragalign bench`: recipes side by side, for quality, cost and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, decoding, query_options
from ragalign_cli.bench_tables import show, show_expected
from ragalign_cli.judge_run import judges_of
from ragalign_cli.report import write_report

if TYPE_CHECKING:
    from ragalign.bench.running import Run
    from ragalign.bench.session import Engine
    from ragalign.judging.base import Verdict
    from ragalign.types import Decoding

_INTERRUPTED = 130
_RECIPES = ("zero-shot", "urial", "ica-random", "ica", "hybrid")


def bench(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Completions, verdicts, report.html and report.json; resumed from.")
    ],
    recipe: Annotated[
        Optional[list[str]],
        typer.Option(metavar="NAME", help="A recipe's name, or a TOML file; all packaged ones by default. Repeatable."),
    ] = None,
    sweep: Annotated[
        Optional[Path], typer.Option(metavar="TOML", help="A grid of factors, in place of --recipe.")
    ] = None,
    testbed: Annotated[bool, typer.Option("--testbed", help="The packaged model, pool and queries.")] = False,
    model: Annotated[
        Optional[str], typer.Option(help="Folder, GGUF file or hub id of a base model.", show_default=False)
    ] = None,
    queries: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME|FILE", help="alpaca-eval, mt-bench, just-eval, lima-test, a file, or -.", show_default=False
        ),
    ] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: Annotated[
        Optional[int], typer.Option(metavar="N", help="Only the first prompts.", show_default=False)
    ] = None,
    index: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Where to retrieve from.", show_default=False)
    ] = None,
    pool: Annotated[
        Optional[list[str]],
        typer.Option(metavar="FILE", help="Or files to index first, into --out. Repeatable.", show_default=False),
    ] = None,
    encoder: Annotated[
        Optional[str], typer.Option(help="What to index --pool with; all-MiniLM-L6-v2 by default.", show_default=False)
    ] = None,
    metric: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="exact-match, or a function as FILE.py:FUNCTION.", show_default=False),
    ] = None,
    judge: Annotated[
        Optional[list[str]],
        typer.Option(metavar="MODEL[@URL]", help="Who judges; repeat for more.", show_default=False),
    ] = None,
    protocol: Annotated[
        Optional[str], typer.Option(help="How to judge: ica, alpaca-eval-2, mt-bench, ...", show_default=False)
    ] = None,
    baseline: Annotated[
        Optional[str],
        typer.Option(metavar="RECIPE", help="What others are compared with; by default the fixed ones."),
    ] = None,
    reference: Annotated[
        Optional[Path],
        typer.Option(metavar="FILE", help="Pairwise protocols: answers to compare with, in place of --baseline."),
    ] = None,
    fixed: Annotated[
        Optional[str], typer.Option(metavar="RECIPE", help="What prices are relative to.", show_default=False)
    ] = None,
    rounds: Annotated[
        int, typer.Option(metavar="N", min=0, help="Rounds to time recipes in; 0 measures no speed.")
    ] = 5,
    key_env: Annotated[
        Optional[list[str]], typer.Option(metavar="NAME", help="Variable with the judge's API key.", show_default=False)
    ] = None,
    max_cost: Annotated[Optional[float], typer.Option(help="Most US dollars for judges.", show_default=False)] = None,
    exclude_near: Annotated[
        Optional[float],
        typer.Option(help="Also keep demonstrations this similar to the prompt out (cosine).", show_default=False),
    ] = None,
    published: Annotated[
        Optional[Path],
        typer.Option(metavar="TOML", help="Published results to show beside, with their sources.", show_default=False),
    ] = None,
    backend: decoding.Backend = "auto",
    tokenizer: decoding.Tokenizer = None,
    context_length: decoding.ContextLength = None,
    max_new_tokens: decoding.MaxNewTokens = None,
    temperature: decoding.Temperature = None,
    top_p: decoding.TopP = None,
    n: decoding.Samples = None,
    seed: Annotated[int, typer.Option(help="Of decoding, the same for all recipes.")] = 0,
    browse: Annotated[
        Optional[int],
        typer.Option(metavar="N", min=1, help="List single answers to N prompts only.", show_default=False),
    ] = None,
    title: Annotated[Optional[str], typer.Option(help="The report's heading.", show_default=False)] = None,
    note: Annotated[
        Optional[str],
        typer.Option(help="A line for the report's head, such as what else kept the machine busy.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
) -> None:
    """Compare recipes on the same prompts, for quality, cost and speed.

    Interrupted, the same command goes on where it stopped. Without a judge or metric it reports cost and speed,
    lengths, how answers ended, and which demonstrations were used. A prompt is never its own demonstration.

    \b
    Examples:
      ragalign bench --testbed --out testbed
      ragalign bench --model meta-llama/Llama-2-13b-hf --index indexes/lima \\
          --queries lima-test --out lima
      ragalign bench --recipe urial --recipe ica --model ./base \\
          --pool answers.jsonl --queries q.jsonl --metric exact-match --out mine
      ragalign bench --model ./base --index indexes/lima --queries mt-bench \\
          --protocol mt-bench --judge gpt-4.1 --out mt
      ragalign bench --sweep grid.toml --model ./base --index indexes/lima \\
          --queries q.jsonl --metric score.py:score --out sweep
    """
    from ragalign.bench import session
    from ragalign.bench.conditions import checked, conditions_of, decoded, guarded
    from ragalign.bench.expected import expectations
    from ragalign.bench.figures import named, report_of
    from ragalign.bench.grid import Grid
    from ragalign.bench.running import Run
    from ragalign.bench.scoring import make_scorer
    from ragalign.bench.testbed import World, world_engine
    from ragalign.errors import ConfigError
    from ragalign.judging.budget import Budget
    from ragalign.judging.registry import make_protocol
    from ragalign.judging.runner import RunOptions
    from ragalign.reports.published import load_published
    from ragalign.runs import write_json

    if (judge is None) != (protocol is None):
        raise ConfigError("judging needs both --judge and --protocol")
    if judge is not None and metric is not None:
        raise ConfigError("give --metric or --judge, not both: the same --out takes the other afterwards")
    asked = judges_of(judge, key_env or []) if judge else []
    how = make_protocol(protocol) if protocol else None
    if testbed:
        if (
            model
            or queries
            or index
            or pool
            or sweep
            or metric
            or judge
            or any((max_new_tokens, temperature, top_p, n))
        ):
            raise ConfigError("--testbed brings all but --out, --first and --backend: leave the other options out")
        world = World.load(first=first)
        conditions, cases, indexes = checked(world.conditions()), world.cases, dict(world.indexes)
        engine, title = world_engine(backend), title or "The testbed: retrieved against fixed demonstrations"
        baseline, metric = "random", "exact-match"
    else:
        if model is None or queries is None:
            raise ConfigError("a benchmark needs --model and --queries (or --testbed, which brings both)")
        conditions = Grid.load(sweep).conditions() if sweep else conditions_of(recipe or _RECIPES)
        cases = query_options.read_cases(queries, first, field, metadata)
        indexes = session.open_indexes(conditions, index=index, pool=pool or (), encoder=encoder, folder=out)
        engine = session.Engine(model, backend, tokenizer, context_length)

    scorer = make_scorer(metric) if metric else None

    def change(settings: Decoding) -> Decoding:
        return decoding.override(
            settings, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, n=n, seed=seed
        )

    conditions = guarded(decoded(conditions, change), exclude_near)
    if baseline is None:
        baseline = fixed or next((one.name for one in conditions if one.is_fixed), conditions[0].name)
    run = Run(out, conditions, cases, indexes, model=engine.model, others=engine.settings)
    for name in (baseline, fixed):
        named(run, name)  # before an engine starts
    try:
        generate(run, engine, rounds=rounds, fixed=fixed)
    except KeyboardInterrupt:
        console.note(f"interrupted; what was answered is kept in {run.folder}, and the same command goes on")
        raise typer.Exit(_INTERRUPTED) from None
    verdicts: Sequence[Verdict] = ()
    if scorer is not None:
        verdicts = session.score(run, scorer)
    elif how is not None:
        options = RunOptions(budget=Budget(max_cost=max_cost))
        done = session.judge(run, how, asked, baseline=baseline, baseline_file=reference, options=options)
        verdicts = done.verdicts
        for name, reason in done.stopped.items():
            console.warning(f"{name}: {reason}")
    shown = load_published(protocol, published) if protocol else ()
    report = report_of(
        run,
        verdicts,
        baseline=baseline,
        fixed=fixed,
        title=title,
        facts=session.facts(run, engine),
        published=shown,
        notes=(note,) if note else (),
    )
    for line in report.notes:
        console.note(line)
    assert report.bench is not None  # a run always has one
    expected = expectations(report.bench, run.answered()) if testbed else []
    document = report.to_dict() | ({"expected": [one.to_dict() for one in expected]} if testbed else {})
    if json:
        console.print_json(document)
    else:
        show(report.bench)
        show_expected(expected)
    write_json(out / "report.json", document)
    write_report(report, out / "report.html", browse)
    if broken := [one.name for one in expected if not one.holds]:
        console.error(f"{len(broken)} of {len(expected)} expectations do not hold: {'; '.join(broken)}")
        raise typer.Exit(console.EXIT_FAILURE)


def generate(run: Run, engine: Engine, *, rounds: int, fixed: str | None = None) -> None:
    """Answer what a run lacks, saying what is going on; failures get a line each."""
    from ragalign.bench import session

    n_all = sum(len(case.turns) for case in run.cases.cases) * len(run.conditions)
    n_missing = run.n_missing
    if n_missing < n_all:
        console.note(f"{n_all - n_missing:,} of {n_all:,} answers are there already")
    failures = session.generate(
        run,
        engine,
        rounds=rounds,
        fixed=fixed,
        on_start=lambda: console.note(f"starting the engine for {engine.model} (half a minute on two CPU cores) ..."),
        on_condition=lambda condition, n: console.note(f"{condition.name}: {n:,} answers"),
        on_round=lambda number: console.note(f"timing: round {number} of {rounds}" if number else "timing: warming up"),
    )
    for condition, failure in failures:
        console.error(f"{condition.name}, prompt {failure.query.id}: {failure.error}")
