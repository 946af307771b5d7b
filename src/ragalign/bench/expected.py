"""Expected results of the testbed on any machine, which `--testbed` checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ragalign.bench.answers import Answered
from ragalign.bench.testbed import REUSED
from ragalign.reports.bench_result import Bench, Measured
from ragalign.reports.formats import interval, number, signed

_RETRIEVED = "retrieved"
_ADVANTAGE, _NEAR, _ZERO, _LOOK_UP, _STOPPED = 40.0, 15.0, 5.0, 80.0, 95.0
_LOST_BY_REUSE = 2.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """An expected result.

    Attributes:
        name: the expectation.
        seen: the actual result, in words.
        holds: whether the result meets the expectation.
    """

    name: str
    seen: str
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def expectations(bench: Bench, answered: Sequence[Answered]) -> list[Expectation]:
    """Check the expectations for the conditions that the run has.

    Args:
        bench: the figures, with "random" as the baseline.
        answered: the completions, with the demonstrations of each prompt.
    """
    figures = {condition.name: condition for condition in bench.conditions}
    shown = {
        answers.condition.name: {row["id"]: row["demonstrations"] for row in answers.requests()} for answers in answered
    }
    return [*_qualities(figures), *_reused(figures), *_guards(figures), *_orders(shown)]


def _qualities(figures: Mapping[str, Measured]) -> Iterator[Expectation]:
    for name in (_RETRIEVED, "bm25", "hybrid"):
        if name in figures and (quality := figures[name].quality) is not None and quality.difference is not None:
            gain = quality.difference
            seen = f"{signed(gain.value, '%')} ({interval(gain, '%')})"
            holds = gain.value >= _ADVANTAGE and gain.low > 0
            yield Expectation(f"{name} beats random by {_ADVANTAGE:.0f} points or more", seen, holds)
    if "fixed" in figures and (quality := figures["fixed"].quality) is not None and quality.difference is not None:
        gap = quality.difference.value
        yield Expectation(f"fixed is within {_NEAR:.0f} points of random", signed(gap, "%"), abs(gap) <= _NEAR)
    yield from _bound(figures, "zero-shot", f"zero-shot is at most {_ZERO:.0f} %", lambda value: value <= _ZERO)
    about = f"one demonstration of the topic among eight others gives {_LOOK_UP:.0f} % or more"
    yield from _bound(figures, "one-of-nine", about, lambda value: value >= _LOOK_UP)


def _reused(figures: Mapping[str, Measured]) -> Iterator[Expectation]:
    """Check that reuse costs next to nothing, and that demonstrations are reused at all."""
    for name, plain in REUSED.items():
        if name not in figures or plain not in figures:
            continue
        mine, other = figures[name].quality, figures[plain].quality
        tokens = figures[name].costs.reused_tokens
        if mine is None or other is None:
            continue
        apart = mine.estimate.value - other.estimate.value
        n_tokens = 0.0 if tokens is None else tokens.value
        seen = f"{signed(apart, '%')}, {n_tokens:,.0f} tokens reused"
        about = f"{name} is within {_LOST_BY_REUSE:.0f} points of {plain}"
        yield Expectation(about, seen, abs(apart) <= _LOST_BY_REUSE and n_tokens > 0)


def _bound(
    figures: Mapping[str, Measured], name: str, about: str, fits: Callable[[float], bool]
) -> Iterator[Expectation]:
    if name in figures and (quality := figures[name].quality) is not None:
        value = quality.estimate.value
        yield Expectation(about, f"{number(value, '%')} %", not math.isnan(value) and fits(value))


def _guards(figures: Mapping[str, Measured]) -> Iterator[Expectation]:
    """Check that the stop string ends answers, and that queries in the pool are not their own demonstrations."""
    if _RETRIEVED not in figures:
        return
    stopped = 100 * figures[_RETRIEVED].costs.ends.get("stop", 0.0)
    about = f"{_STOPPED:.0f} % of retrieved answers or more end by themselves"
    yield Expectation(about, f"{number(stopped, '%')} %", stopped >= _STOPPED)
    planted, whole = figures.get("planted"), figures[_RETRIEVED].quality
    if planted is not None and planted.quality is not None and whole is not None:
        loss = planted.quality.estimate.value - whole.estimate.value
        seen = f"{signed(loss, '%')}, {planted.costs.n_leaked} shown"
        holds = loss >= -_NEAR and planted.costs.n_leaked == 0
        yield Expectation("wrong answers planted under the queries' own texts change nothing", seen, holds)


def _orders(shown: Mapping[str, Mapping[str, Sequence[str]]]) -> Iterator[Expectation]:
    """Check that the most similar demonstration, the only one of retrieved-1, is in the place given by the order."""
    best = {name: used[0] for name, used in shown.get("retrieved-1", {}).items() if used}
    for condition, place, where in ((_RETRIEVED, -1, "last"), ("similar-first", 0, "first")):
        prompts = [
            (used[place], best[name]) for name, used in shown.get(condition, {}).items() if used and name in best
        ]
        if prompts:
            n_right = sum(placed == most for placed, most in prompts)
            about = f"{condition}: the most similar demonstration comes {where}"
            yield Expectation(about, f"in {n_right} of {len(prompts)} prompts", n_right == len(prompts))
