"""The steps of `ragalign bench`: generate missing answers, and build the judging."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ragalign_cli import console
from ragalign_cli.judge_run import TokenLimitName, judges_of, reward_models

if TYPE_CHECKING:
    from ragalign.bench.benchmark import Benchmark, Judging


def answer(benchmark: Benchmark) -> None:
    """Generate the missing answers of a benchmark and report progress, with one line per failure."""
    run = benchmark.run
    n_all, n_missing = benchmark.n_answers, run.n_missing
    if benchmark.is_answered:
        console.note(f"all {n_all:,} answers exist: no engine is needed")
    elif n_missing < n_all:
        console.note(f"{n_all - n_missing:,} of {n_all:,} answers exist")
    model, rounds = benchmark.engine.model, benchmark.rounds
    try:
        failures = benchmark.answer(
            on_start=lambda: console.note(f"starting the engine for {model} (half a minute on two CPU cores) ..."),
            on_condition=lambda condition, n: console.note(f"{condition.name}: {n:,} answers"),
            on_likelihoods=lambda condition, n: console.note(f"{condition.name}: likelihood of {n:,} references"),
            on_round=lambda number: console.note(
                f"timing: round {number} of {rounds}" if number else "timing: warming up"
            ),
        )
    except KeyboardInterrupt:
        console.note(
            f"interrupted; the answers so far are kept in {run.folder}: run the same command again to continue"
        )
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    for condition, failure in failures:
        console.error(f"{condition.name}, prompt {failure.query.id}: {failure.error}")


def judging_from(
    judges: list[str] | None,
    protocol: str | None,
    key_env: list[str] | None,
    reference: Path | None,
    published: Path | None,
    max_cost: float | None,
    token_limit: TokenLimitName,
    ray: str | None,
    workers: int | None,
) -> Judging | None:
    """The judging of a benchmark from its options; None without a judge."""
    from ragalign.bench.benchmark import Judging
    from ragalign.judging.budget import Budget
    from ragalign.judging.registry import make_protocol
    from ragalign.judging.runs import RunOptions
    from ragalign.reports.published import load_published

    if not judges or protocol is None:
        return None
    return Judging(
        make_protocol(protocol),
        tuple(judges_of(judges, key_env or [])),
        reference,
        RunOptions(
            budget=Budget(max_cost=max_cost), token_limit=token_limit, reward_models=reward_models(ray, workers)
        ),
        tuple(load_published(protocol, published)),
    )
