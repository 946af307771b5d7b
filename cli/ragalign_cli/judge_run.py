"""`ragalign judge run`: ask judges about answer files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragalign_cli import console
from ragalign_cli.figures import figures_record, nothing_scored, show_figures
from ragalign_cli.options import EVALUATION, Quiet, Ray, Workers, check_cluster
from ragalign_cli.paths import out_folder

if TYPE_CHECKING:
    from ragalign.judging.base import Figures
    from ragalign.judging.judges import AnyJudge
    from ragalign.judging.reward import RewardModels
    from ragalign.judging.runs import JudgePlan, JudgeRun

_CACHE = "replies.sqlite"

TokenLimitName = Annotated[
    Literal["auto", "max_tokens", "max_completion_tokens"],
    typer.Option(
        help="Name of the token limit in requests to judges; auto learns it from the server.",
        rich_help_panel=EVALUATION,
    ),
]


def run(
    protocol: Annotated[str, typer.Option(help="The judging protocol: ica, alpaca-eval-2, mt-bench, reward, ...")],
    answers: Annotated[
        list[Path], typer.Option(help="Answer file of any upstream tool. Repeatable, for several models.")
    ],
    judge: Annotated[
        list[str],
        typer.Option(metavar="MODEL[@URL]", help="The judge's model and its URL, or reward:MODEL. Repeatable."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for replies, verdicts and upstream files; an interrupted run is resumed from it.",
            callback=out_folder,
        ),
    ],
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", "--reference", help="Pairwise protocols: the answer file to compare with."),
    ] = None,
    reference_answers: Annotated[
        Path | None, typer.Option(help="MT-Bench: reference answers to show to the judge.")
    ] = None,
    queries: Annotated[
        Path | None, typer.Option(help="Question file, if the answer files do not contain the questions.")
    ] = None,
    both_orders: Annotated[
        bool, typer.Option("--both-orders", help="Judge each pair of answers in both orders.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Leave replies unscored where the upstream tool would guess.")
    ] = False,
    prompt_file: Annotated[
        Path | None, typer.Option(help="The judge's prompt, as a file of the upstream tool.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Maximum concurrent requests per judge.")] = 16,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Maximum tokens per minute for each judge.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds before a request is cancelled and retried.")] = 120.0,
    tries: Annotated[int, typer.Option(help="Maximum attempts to get a reply that can be parsed.")] = 1,
    token_limit: TokenLimitName = "auto",
    max_cost: Annotated[float | None, typer.Option(help="Maximum US dollars to spend.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Maximum requests to send, retries included.")] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML file with your own prices.")] = None,
    key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the API key: once for all judges, or once per judge."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate requests and cost without asking.")] = False,
    ray: Ray = None,
    workers: Workers = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Ask judges about answers. If interrupted or out of budget, run the same command again to continue.

    API keys are read from the environment variable OPENAI_API_KEY, or the one that --key-env names. The exit status
    is 1 if a question was not answered or nothing was scored.

    \b
    Examples:
      ragalign judge run --protocol ica --answers a.jsonl --baseline b.jsonl \\
          --judge gpt-4-0613 --out judged
      ragalign judge run --protocol mt-bench --answers a.jsonl \\
          --queries question.jsonl --judge llama-70b@http://localhost:8000/v1 \\
          --out judged
      ragalign judge run --protocol alpaca-eval-2 --answers a.json \\
          --baseline gpt4.json --judge gpt-4.1 --judge gpt-4o --both-orders \\
          --max-cost 5 --dry-run --out judged
      ragalign judge run --protocol reward --answers a.jsonl \\
          --judge reward:./reward-model --ray auto --workers 8 --out judged
    """
    from ragalign.errors import ConfigError
    from ragalign.judging.answers import load_items
    from ragalign.judging.budget import Budget
    from ragalign.judging.cache import ReplyCache
    from ragalign.judging.judges import RewardJudge
    from ragalign.judging.output import VERDICTS, write_run
    from ragalign.judging.pricing import PriceTable
    from ragalign.judging.registry import make_protocol
    from ragalign.judging.runner import plan_judge, run_judge
    from ragalign.judging.runs import RunOptions
    from ragalign.runs import RunFolder

    console.be_quiet(quiet)
    judges = judges_of(judge, key_env or [])
    check_cluster(ray, workers)
    if ray is not None and not any(isinstance(one, RewardJudge) for one in judges):
        raise ConfigError(
            "only reward models run on a Ray cluster; judges at a URL are called from this process: leave out --ray"
        )
    options = RunOptions(
        concurrency=concurrency,
        timeout_s=timeout,
        tokens_per_minute=tokens_per_minute,
        tries=tries,
        token_limit=token_limit,
        budget=Budget(max_requests=max_requests, max_cost=max_cost),
        prices=PriceTable.load(prices),
        reward_models=reward_models(ray, workers),
    )
    given = {"both_orders": both_orders, "prompt_file": prompt_file, "strict": strict}
    # Not every protocol has each of them.
    how = make_protocol(protocol, **{name: value for name, value in given.items() if value})
    items = [
        item
        for path in answers
        for item in load_items(path, baseline=baseline, questions=queries, references=reference_answers)
    ]
    path = out / _CACHE
    if dry_run:
        with ReplyCache(path, read_only=True) as cache:
            _show_plans(plan_judge(how, items, judges, cache=cache, options=options), as_json=json)
        return
    folder = RunFolder(out)
    folder.claim({"protocol": how.name}, work=VERDICTS)
    # Take the lock first: a second run in this folder must not pay for the same replies.
    with folder.writing(), ReplyCache(path) as cache:
        try:
            done = run_judge(how, items, judges, cache=cache, options=options, show_progress=True)
        except KeyboardInterrupt:
            console.note(
                f"interrupted; {len(cache):,} replies are kept in {path}: run the same command again to continue"
            )
            raise typer.Exit(console.EXIT_INTERRUPTED) from None
        files = write_run(out, how, done.judgements, options.prices)
    _show_run(done, how.aggregate(done.verdicts) if done.verdicts else [], files, as_json=json)
    n_scored = sum(verdict.is_scored for verdict in done.verdicts)
    if not n_scored:
        console.error(nothing_scored(done.reasons))
    if done.n_unanswered or not n_scored:
        raise typer.Exit(console.EXIT_FAILURE)


def judges_of(names: list[str], variables: list[str]) -> list[AnyJudge]:
    """Parse the judges of ``--judge`` and ``--key-env``."""
    from ragalign.errors import ConfigError
    from ragalign.judging.judges import parse_judge

    if len(variables) > 1 and len(variables) != len(names):
        raise ConfigError(
            f"--key-env is given {len(variables)} times for {len(names)} judges; give it once, or once per judge"
        )
    if not variables:
        return [parse_judge(name) for name in names]
    named = variables * len(names) if len(variables) == 1 else variables
    return [parse_judge(name, key_variable=variable) for name, variable in zip(names, named, strict=True)]


def reward_models(ray: str | None, workers: int | None) -> Callable[[], RewardModels]:
    """A function that loads reward models: in this process, or on a cluster, which is only used once it is needed."""
    from ragalign.judging.reward import LocalRewardModels
    from ragalign.judging.reward_ray import RayRewardModels

    return LocalRewardModels if ray is None else partial(RayRewardModels, address=ray, workers=workers)


def _show_plans(plans: list[JudgePlan], *, as_json: bool) -> None:
    if as_json:
        for plan in plans:
            console.print_json(plan.to_dict())
        return
    headings = ("judge", "verdicts", "settled", "cached", "requests", "prompt tokens", "output tokens", "cost")
    rows = [
        (
            plan.judge,
            f"{plan.n_verdicts:,}",
            f"{plan.n_settled:,}",
            f"{plan.n_cached:,}",
            f"{plan.n_requests:,}",
            f"~{plan.usage.n_prompt_tokens:,}",
            f"<={plan.usage.n_output_tokens:,}",
            "unknown" if plan.cost_high is None else f"${plan.cost_low:.2f} to ${plan.cost_high:.2f}",
        )
        for plan in plans
    ]
    console.print_table([(heading, "right" if heading != "judge" else "left") for heading in headings], rows)
    console.note("token counts are estimates and exclude retries; no request was sent")


def _show_run(done: JudgeRun, figures: list[Figures], files: list[Path], *, as_json: bool) -> None:
    from ragalign.comparisons.intervals import intervals
    from ragalign.judging.budget import cost_note

    estimates = [intervals(model_figures) for model_figures in figures]
    for judge, reason in done.stopped.items():
        console.warning(f"{judge}: {reason}")
    for note in done.notes:
        console.note(note)
    n_scored = sum(verdict.is_scored for verdict in done.verdicts)
    if as_json:
        result: dict[str, Any] = {
            "n": n_scored,
            "n_unscored": len(done.verdicts) - n_scored,
            "n_unanswered": done.n_unanswered,
            "reasons": done.reasons,
            "stopped": dict(done.stopped),
            "notes": list(done.notes),
            "judges": {name: spending.to_dict() for name, spending in done.spending.items()},
            "figures": [
                figures_record(model_figures, found) for model_figures, found in zip(figures, estimates, strict=True)
            ],
            "files": [str(path) for path in files],
        }
        console.print_json(result)
    else:
        show_figures(figures, estimates)
    scored = f"{n_scored:,} of {len(done.verdicts):,} verdicts scored"
    n_requests = sum(spending.n_requests for spending in done.spending.values())
    console.note(f"{scored}; {n_requests:,} requests, cost {cost_note(done.spending)}")
    console.note(f"-> {files[0].parent}")
    if done.n_unanswered:
        console.warning(f"{done.n_unanswered:,} verdicts have no reply yet: run the same command again to ask for them")
