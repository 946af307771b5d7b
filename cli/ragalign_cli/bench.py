"""`ragalign bench`: compare recipes for quality, cost and speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, options, query_options
from ragalign_cli.bench_steps import answer, judging_from
from ragalign_cli.bench_tables import show, show_expected
from ragalign_cli.figures import nothing_scored
from ragalign_cli.judge_run import TokenLimitName

if TYPE_CHECKING:
    from ragalign.types import Decoding

_RECIPES = ("zero-shot", "urial", "ica-random", "ica", "hybrid")


def bench(
    out: options.OutFolder,
    recipe: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="NAME",
            help="A recipe's name or TOML file; by default the packaged recipes. Repeatable.",
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    sweep: Annotated[
        Optional[Path],
        typer.Option(
            metavar="TOML",
            help="A grid of factors, instead of --recipe.",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    index: Annotated[
        Optional[Path],
        typer.Option(
            metavar="DIR",
            help="The index to retrieve from; only recipes that retrieve need it.",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    pool: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="FILE",
            help="Files to index into --out first, instead of --index. Repeatable.",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    encoder: Annotated[
        Optional[str],
        typer.Option(
            help="The encoder for --pool; by default all-MiniLM-L6-v2.",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    exclude_near: Annotated[
        Optional[float],
        typer.Option(
            metavar="S",
            help="Leave out demonstrations this similar to the question (cosine).",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    queries: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME|FILE",
            help="A question file, or alpaca-eval, mt-bench, just-eval, lima-test, ifeval or ifbench.",
            show_default=False,
            rich_help_panel=options.QUESTIONS,
        ),
    ] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    testbed: Annotated[
        bool,
        typer.Option(
            "--testbed", help="Use the packaged model, pool and questions.", rich_help_panel=options.QUESTIONS
        ),
    ] = False,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="Folder, GGUF file or hub id of a base model.", show_default=False, rich_help_panel=options.MODEL
        ),
    ] = None,
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    n: options.Samples = None,
    stop: options.Stop = None,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", help="Seed for decoding, the same for all recipes.", rich_help_panel=options.DECODING
        ),
    ] = 0,
    metric: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="NAME",
            help="exact-match, reference-likelihood, answer-similarity, ifeval, ifbench, or a function as "
            "FILE.py:FUNCTION (see above). Repeatable; the first is the headline.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    judge: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="MODEL[@URL]",
            help="The judge's model, or reward:MODEL for a reward model. Repeatable.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    protocol: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME",
            help="The judging protocol: ica, alpaca-eval-2, mt-bench, ...",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    baseline: Annotated[
        Optional[str],
        typer.Option(
            metavar="RECIPE",
            help="The recipe to compare with; by default the first with fixed demonstrations.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    reference: Annotated[
        Optional[Path],
        typer.Option(
            metavar="FILE",
            help="Pairwise protocols: an answer file to compare with, instead of --baseline.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    key_env: Annotated[
        Optional[list[str]],
        typer.Option(
            metavar="NAME",
            help="Environment variable with the judge's API key.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    token_limit: TokenLimitName = "auto",
    max_cost: Annotated[
        Optional[float],
        typer.Option(
            metavar="USD",
            help="Maximum US dollars to spend on judges.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    published: Annotated[
        Optional[Path],
        typer.Option(
            metavar="TOML",
            help="Published results to show next to yours, with their sources.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    fixed: Annotated[
        Optional[str],
        typer.Option(
            metavar="RECIPE",
            help="The recipe that prices are relative to.",
            show_default=False,
            rich_help_panel=options.EVALUATION,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Timing rounds; 0 skips the timing.",
            rich_help_panel=options.EVALUATION,
        ),
    ] = 5,
    browse: Annotated[
        Optional[int],
        typer.Option(
            metavar="N",
            min=1,
            help="List the answers to the first N questions only.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    title: Annotated[
        Optional[str],
        typer.Option(metavar="TEXT", help="The report's heading.", show_default=False, rich_help_panel=options.OUTPUT),
    ] = None,
    note: Annotated[
        Optional[str],
        typer.Option(
            metavar="TEXT",
            help="A note for the top of the report, such as the load on the machine.",
            show_default=False,
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare recipes on the same questions, for quality, cost and speed.

    If it is interrupted, run the same command again to continue. Without a metric or judge it reports cost, speed,
    lengths, finish reasons and the demonstrations used. A question is never its own demonstration.

    A metric is a Python function of one record (a dict with id, instruction, messages, response, references,
    finish_reason, demonstrations, recipe, turn, category and metadata) that returns a number, or None for no score.
    If lower is better, set score.lower_is_better = True after the function.

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
    from ragalign.bench.benchmark import Benchmark
    from ragalign.bench.conditions import conditions_of
    from ragalign.bench.grid import Grid
    from ragalign.bench.scoring import make_scorers
    from ragalign.bench.session import Engine, open_indexes
    from ragalign.errors import ConfigError

    console.be_quiet(quiet)
    options.check_cluster(ray, workers, backend)
    if testbed and ray is not None:
        raise ConfigError("--testbed is measured in one process: leave out --ray")
    if judge and protocol is None and all(name.startswith("reward:") for name in judge):
        protocol = "reward"
    if (judge is None) != (protocol is None):
        raise ConfigError("judging needs both --judge and --protocol")
    if judge is not None and metric is not None:
        raise ConfigError("give --metric or --judge, not both; to add the other, run again with the same --out")

    def change(recipe: Decoding) -> Decoding:
        return options.decoding(
            recipe, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, n=n, seed=seed, stop=stop
        )

    notes = (note,) if note else ()
    if testbed:
        given = (model, queries, index, pool, sweep, recipe, metric, judge, max_new_tokens, temperature, top_p, n, stop)
        if any(given):
            raise ConfigError("--testbed sets everything but --out, --first and --backend: leave out the other options")
        benchmark = Benchmark.of_testbed(
            out, backend, first=first, title=title, change=change, rounds=rounds, notes=notes
        )
    else:
        if model is None or queries is None:
            raise ConfigError("a benchmark needs --model and --queries, or --testbed")
        engine_options = options.engine(dtype, tensor_parallel, gpu_memory)
        benchmark = Benchmark(
            out,
            Grid.load(sweep).conditions() if sweep else conditions_of(recipe or _RECIPES),
            query_options.read_cases(queries, first, field, metadata),
            Engine(model, backend, tokenizer, context_length, engine_options, ray=ray, workers=workers),
            indexes=lambda conditions: open_indexes(
                conditions, index=index, pool=pool or (), encoder=encoder, folder=out
            ),
            scorers=make_scorers(metric or ()),
            judging=judging_from(judge, protocol, key_env, reference, published, max_cost, token_limit, ray, workers),
            baseline=baseline,
            fixed=fixed,
            exclude_near=exclude_near,
            change=change,
            rounds=rounds,
            title=title,
            notes=notes,
        )
    answer(benchmark)
    outcome = benchmark.evaluate()
    for line in outcome.report.notes:
        console.note(line)
    judged = outcome.judged
    if judged is not None:
        for name, reason in judged.stopped.items():
            console.warning(f"{name}: {reason}")
        for line in judged.notes:
            console.note(line)
    if json:
        console.print_json(outcome.to_dict())
    elif outcome.report.bench is not None:
        show(outcome.report.bench)
        show_expected(outcome.expected)
    page = benchmark.write(outcome, browse)
    console.note(f"-> {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if broken := outcome.broken:
        names = "; ".join(expectation.name for expectation in broken)
        console.error(f"{len(broken)} of {len(outcome.expected)} expectations failed: {names}")
    is_scored = judged is None or any(verdict.is_scored for verdict in judged.verdicts)
    if judged is not None and not is_scored:
        console.error(nothing_scored(judged.reasons))
    if broken or not is_scored:
        raise typer.Exit(console.EXIT_FAILURE)
