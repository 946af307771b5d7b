"""`ragalign bench`: recipes side by side, for quality, cost and speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, decoding
from ragalign_cli.judge_run import judges_of
from ragalign_cli.report import write_report

if TYPE_CHECKING:
    from ragalign.evaluation.bench.result import Bench, Factor
    from ragalign.evaluation.bench.running import Run
    from ragalign.evaluation.bench.session import Engine
    from ragalign.judging.base import Verdict
    from ragalign.types import Decoding

_INTERRUPTED = 130


def bench(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Completions, verdicts, report.html and report.json; resumed from.")
    ],
    recipes: Annotated[
        str, typer.Option(help="Names or TOML files, with commas between them.")
    ] = "zero-shot,urial,ica-random,ica,hybrid",
    sweep: Annotated[
        Optional[Path], typer.Option(metavar="TOML", help="A grid of factors, in place of --recipes.")
    ] = None,
    testbed: Annotated[bool, typer.Option("--testbed", help="The packaged model, pool and queries.")] = False,
    model: Annotated[Optional[str], typer.Option(help="Folder or hub id of a base model.", show_default=False)] = None,
    prompts: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME|FILE", help="alpaca-eval, mt-bench, just-eval, lima-test, or a file.", show_default=False
        ),
    ] = None,
    first: Annotated[
        Optional[int], typer.Option(metavar="N", help="Only the first prompts.", show_default=False)
    ] = None,
    index: Annotated[
        Optional[Path], typer.Option(metavar="DIR", help="Where to retrieve from.", show_default=False)
    ] = None,
    pool: Annotated[
        Optional[list[str]],
        typer.Option(metavar="FILE...", help="Or files to index first, into --out.", show_default=False),
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
    title: Annotated[Optional[str], typer.Option(help="The report's heading.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
) -> None:
    """Compare recipes on the same prompts, for quality, cost and speed.

    Interrupted, the same command goes on where it stopped. Without a judge or metric it reports cost and speed,
    lengths, how answers ended, and which demonstrations were used. A prompt is never its own demonstration.

    \b
    Examples:
      ragalign bench --testbed --out testbed
      ragalign bench --model meta-llama/Llama-2-13b-hf --index indexes/lima --prompts lima-test --out lima
      ragalign bench --recipes urial,ica --model ./base --pool answers.jsonl --prompts q.jsonl --metric exact-match
        --out mine
      ragalign bench --model ./base --index indexes/lima --prompts mt-bench --protocol mt-bench --judge gpt-4.1
        --out mt
      ragalign bench --sweep grid.toml --model ./base --index indexes/lima --prompts q.jsonl --metric score.py:score
        --out sweep
    """
    from ragalign.errors import ConfigError
    from ragalign.evaluation.bench import session
    from ragalign.evaluation.bench.cases import load_cases
    from ragalign.evaluation.bench.conditions import checked, conditions_of, decoded, guarded
    from ragalign.evaluation.bench.figures import report_of
    from ragalign.evaluation.bench.grid import Grid
    from ragalign.evaluation.bench.published import load_published
    from ragalign.evaluation.bench.running import Run
    from ragalign.evaluation.bench.scoring import make_scorer
    from ragalign.evaluation.bench.testbed import World, world_engine
    from ragalign.judging.budget import Budget
    from ragalign.judging.registry import make_protocol
    from ragalign.judging.runner import RunOptions

    if (judge is None) != (protocol is None):
        raise ConfigError("judging needs both --judge and --protocol")
    if judge is not None and metric is not None:
        raise ConfigError("give --metric or --judge, not both: the same --out takes the other afterwards")
    asked = judges_of(judge, key_env or []) if judge else []
    how = make_protocol(protocol) if protocol else None
    metric = metric or ("exact-match" if testbed and not judge else None)
    scorer = make_scorer(metric) if metric else None
    if testbed:
        if model or prompts or index or pool or sweep:
            raise ConfigError("--testbed brings its model, pool, prompts and recipes: leave those options out")
        world = World.load(first=first)
        conditions, cases, indexes = checked(world.conditions()), world.cases, dict(world.indexes)
        engine, title = world_engine(backend), title or "The testbed: retrieved against fixed demonstrations"
        baseline = baseline or "random"
    else:
        if model is None or prompts is None:
            raise ConfigError("a benchmark needs --model and --prompts (or --testbed, which brings both)")
        conditions = Grid.load(sweep).conditions() if sweep else conditions_of(recipes.split(","))
        cases = load_cases(prompts).first(first)
        indexes = session.open_indexes(conditions, index=index, pool=pool or (), encoder=encoder, folder=out)
        engine = session.Engine(model, backend, tokenizer, context_length)

    def change(settings: Decoding) -> Decoding:
        return decoding.override(
            settings, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, n=n, seed=seed
        )

    conditions = guarded(decoded(conditions, change), exclude_near)
    if baseline is None:
        baseline = fixed or next((one.name for one in conditions if one.is_fixed), conditions[0].name)
    run = Run(out, conditions, cases, indexes, model=engine.model, others=engine.settings)
    generate(run, engine)
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
    )
    for note in report.notes:
        console.note(note)
    if json:
        console.print_json(report.to_dict())
    elif report.bench is not None:
        show(report.bench)
    session.write_json(out / "report.json", report.to_dict())
    write_report(report, out / "report.html")


def generate(run: Run, engine: Engine) -> None:
    """Answer what a run lacks, saying what is going on; failures get a line each."""
    from ragalign.evaluation.bench import session

    n_all = sum(len(case.turns) for case in run.cases.cases) * len(run.conditions)
    n_missing = run.n_missing
    if n_missing < n_all:
        console.note(f"{n_all - n_missing:,} of {n_all:,} answers are there already")
    try:
        failures = session.generate(
            run,
            engine,
            on_start=lambda: console.note(
                f"starting the engine for {engine.model} (half a minute on two CPU cores) ..."
            ),
            on_condition=lambda condition, n: console.note(f"{condition.name}: {n:,} answers"),
        )
    except KeyboardInterrupt:
        console.note(f"interrupted; what was answered is kept in {run.folder}, and the same command goes on")
        raise typer.Exit(_INTERRUPTED) from None
    for condition, failure in failures:
        console.error(f"{condition.name}, prompt {failure.query.id}: {failure.error}")


def show(bench: Bench) -> None:
    """The figures as aligned tables: quality, cost, and the factors of a sweep."""
    if bench.label:
        show_quality(bench)
    _show_costs(bench)
    for factor in bench.factors:
        _show_factor(factor, bench)
    if bench.published:
        _show_published(bench)


def show_quality(bench: Bench) -> None:
    """The headline metric of every recipe, and its difference from the baseline on the same prompts."""
    from ragalign.evaluation.formats import interval, number, p_value, signed
    from ragalign.evaluation.markup import with_unit

    unit = bench.unit
    console.heading(with_unit(bench.label, unit))
    columns = [("recipe", "left"), (bench.label.lower(), "right"), ("95 % interval", "right")]
    columns += [(f"minus {bench.baseline}", "right"), ("paired 95 % interval", "right"), ("p", "right")]
    rows = []
    for one in bench.conditions:
        quality = one.quality
        estimate, difference = (quality.estimate, quality.difference) if quality else (None, None)
        row = [one.name, number(estimate.value if estimate else None, unit)]
        row.append(interval(estimate, unit) if estimate else "")
        row += [signed(difference.value, unit), interval(difference, unit)] if difference else ["", ""]
        rows.append([*row, p_value(quality.test.p_value) if quality and quality.test else ""])
    console.print_table(columns, rows)


def _show_costs(bench: Bench) -> None:
    from ragalign.evaluation.formats import number
    from ragalign.evaluation.sections_bench import price, rate

    console.heading("Cost and speed, per request")
    names = ("shown", "prompt", "prefilled", "output", "first, ms", "requests/s", "price")
    columns = [("recipe", "left"), *((name, "right") for name in names)]
    rows = [
        [
            one.name,
            number(one.costs.demonstrations.value, "%"),
            number(one.costs.prompt_tokens.value, "words"),
            number(one.costs.prefilled_tokens.value if one.costs.prefilled_tokens else None, "words"),
            number(one.costs.output_tokens.value, "%"),
            number(one.costs.first_token.median if one.costs.first_token else None, "%"),
            rate(one.costs.requests_per_s),
            price(one.costs.price_ratio),
        ]
        for one in bench.conditions
    ]
    console.print_table(columns, rows)
    note = "shown: demonstrations in a prompt; prompt, prefilled, output: tokens; first: median time to the first token"
    if bench.fixed and any(one.costs.price_ratio is not None for one in bench.conditions):
        note += f"; price: the engine's seconds per request, relative to {bench.fixed} in the same run"
    console.note(note)


def _show_factor(factor: Factor, bench: Bench) -> None:
    from ragalign.evaluation.formats import interval, number
    from ragalign.evaluation.markup import with_unit

    console.heading(factor.name.replace("_", " "))
    columns = [("level", "left"), ("conditions", "right"), ("prompt tokens", "right")]
    columns += [(with_unit(bench.label, bench.unit), "right"), ("95 % interval", "right")] if bench.label else []
    rows = []
    for level in factor.levels:
        row = [level.name, f"{level.n_conditions:,}", number(level.prompt_tokens, "words")]
        if level.estimate is not None:
            row += [number(level.estimate.value, bench.unit), interval(level.estimate, bench.unit)]
        rows.append(row)
    console.print_table(columns, rows)


def _show_published(bench: Bench) -> None:
    from ragalign.evaluation.formats import number

    console.heading("Published by others, not measured here")
    rows = [[one.name, one.figure, number(one.value, one.unit), one.source] for one in bench.published]
    console.print_table([("system", "left"), ("figure", "left"), ("published", "right"), ("source", "left")], rows)
