"""Figures of judged answers as tables and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragalign_cli import console

if TYPE_CHECKING:
    from ragalign.judging.base import Figures
    from ragalign.judging.replay import ReplayProblem
    from ragalign.statistics import Estimate

_LISTED = 10


def figures_record(figures: Figures, estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """The figures as JSON, with an interval for each mean."""
    return {**figures.as_dict(), "intervals": {name: estimate.to_dict() for name, estimate in estimates.items()}}


def show_figures(table: Sequence[Figures], estimates: Sequence[Mapping[str, Estimate]]) -> None:
    """Print one table per model: its figures, with intervals for means."""
    for figures, found in zip(table, estimates, strict=True):
        baseline = f" vs {figures.baseline}" if figures.baseline else ""
        console.heading(f"{figures.model}{baseline}")
        rows: list[tuple[str, str, str]] = [("n", str(figures.n), ""), ("n_unscored", str(figures.n_unscored), "")]
        for name, value in _flat(figures.values):
            estimate = found.get(name)
            rows.append((name, number_or_dash(value), _interval(estimate)))
        console.print_table([("figure", "left"), ("value", "right"), ("95 % interval", "right")], rows)
        for reason, count in figures.reasons.items():
            console.note(f"{figures.model}: {count} unscored: {reason}")
        for note in figures.notes:
            console.note(f"{figures.model}: {note}")


def tell_problems(problems: Sequence[ReplayProblem]) -> None:
    """Warn of unreadable rows: the first few by name, the rest as a count."""
    for problem in problems[:_LISTED]:
        console.warning(f"{problem.where}: {problem.reason}; counted as unscored")
    if len(problems) > _LISTED:
        console.warning(f"... and {len(problems) - _LISTED} more unreadable rows, counted as unscored")


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", nested) for part, nested in value.items())
        else:
            yield name, value


def number_or_dash(value: object) -> str:
    """A number with two decimals, or a dash for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def nothing_scored(reasons: Mapping[str, int]) -> str:
    """The error message for a run without any scored verdict, with the most frequent reason."""
    if not reasons:
        return "nothing was scored: there are no verdicts"
    reason, count = max(reasons.items(), key=lambda pair: pair[1])
    return f"nothing was scored; {count:,} of {sum(reasons.values()):,}: {reason}"


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.low):
        return ""
    return f"{estimate.low:.2f} to {estimate.high:.2f}"
