"""Means, paired differences, and where retrieval helps, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragalign.statistics import Estimate, mean, paired_difference
from real.observations import FIXED, Measured, Part, Values, is_set

BASELINES = ("zero-shot", "retrieved 9")
RETRIEVED = "retrieved 9"
N_NEARNESS = 3

Table = dict[str, dict[str, Estimate]]
"""Condition, then metric."""


@dataclass(frozen=True)
class PartFigures:
    """The figures of a part.

    Attributes:
        means: of each condition.
        against: for each baseline, the differences of the others to it.
        sets: for each metric, the mean of each drawn set.
        n_unscored: verdicts that a checker could not give, by condition.
    """

    means: Table
    against: dict[str, Table]
    sets: dict[str, dict[str, float]]
    n_unscored: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "means": _table(self.means),
            "against": {name: _table(found) for name, found in self.against.items()},
            "fixed_sets": {
                metric: {name: round(value, 4) for name, value in sets.items()} for metric, sets in self.sets.items()
            },
            "n_unscored_instructions": self.n_unscored,
        }


@dataclass(frozen=True)
class Slice:
    """The effect of retrieval on a subset of questions: differences of `RETRIEVED` from other conditions.

    Attributes:
        name: of the category, or the range of similarities.
        n: questions.
        differences: for each condition, the difference of `RETRIEVED` from it.
    """

    name: str
    n: int
    differences: dict[str, Estimate]


@dataclass(frozen=True)
class Figures:
    """All figures of the report."""

    alpaca: PartFigures
    ifeval: PartFigures
    many_shot: PartFigures
    decoding: PartFigures
    by_category: dict[str, list[Slice]]
    by_nearness: dict[str, list[Slice]]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        slices = {"by_category": self.by_category, "by_nearness": self.by_nearness}
        return {
            **{name: getattr(self, name).to_dict() for name in ("alpaca", "ifeval", "many_shot", "decoding")},
            **{
                name: {metric: [_slice(subset) for subset in found] for metric, found in by_metric.items()}
                for name, by_metric in slices.items()
            },
        }


def figures(measured: Measured) -> Figures:
    """The figures of everything that was measured; what was not is not there."""
    sliced = {"nll": measured.alpaca, "similarity": measured.alpaca, "instruction_loose": measured.ifeval}
    categories = {key: str(row["category"]) for key, row in measured.questions.items()}
    similarity = {key: float(row["nearest"]) for key, row in measured.questions.items()}
    return Figures(
        alpaca=_part(measured.alpaca, BASELINES),
        ifeval=_part(measured.ifeval, BASELINES),
        many_shot=_part(measured.many_shot, (), merge=False),
        decoding=_part(measured.decoding, ("temperature 0, penalty none",), merge=False),
        by_category={metric: _slices(part, metric, _groups(categories)) for metric, part in sliced.items()},
        by_nearness={metric: _slices(part, metric, _thirds(similarity)) for metric, part in sliced.items()},
    )


def difference(first: Values, second: Values) -> Estimate:
    """The mean of first - second over what both have, with an interval from resampled questions."""
    keys = [key for key in first if key in second]
    return paired_difference([first[key] for key in keys], [second[key] for key in keys], [key[0] for key in keys])


def _part(part: Part, baselines: tuple[str, ...], *, merge: bool = True) -> PartFigures:
    shown = part.with_fixed() if merge else part
    sets = {
        metric: {name: float(np.mean(list(found.values()))) for name, found in by_condition.items() if is_set(name)}
        for metric, by_condition in part.values.items()
    }
    return PartFigures(
        _each(shown, lambda metric, condition: _mean(shown.values[metric][condition])),
        {
            baseline: _each(
                shown,
                lambda metric, condition, baseline=baseline: difference(  # type: ignore[misc]
                    shown.values[metric][condition], shown.values[metric].get(baseline, {})
                ),
                but=baseline,
            )
            for baseline in baselines
        },
        {metric: found for metric, found in sets.items() if found} if merge else {},
        part.n_unscored,
    )


def _each(part: Part, figure: Callable[[str, str], Estimate], but: str = "") -> Table:
    """A figure for each condition and metric that there are."""
    found: Table = {}
    for condition in part.conditions:
        if condition != but:
            found[condition] = {
                metric: figure(metric, condition)
                for metric, by_condition in part.values.items()
                if condition in by_condition
            }
    return found


def _mean(values: Values) -> Estimate:
    return mean(list(values.values()), [key[0] for key in values])


def _slices(part: Part, metric: str, grouped: Callable[[list[str]], list[tuple[str, frozenset[str]]]]) -> list[Slice]:
    """The differences for each group of questions that has been answered with retrieved demonstrations."""
    by_condition = part.with_fixed().values.get(metric, {})
    retrieved = by_condition.get(RETRIEVED, {})
    found = []
    for name, members in grouped(sorted({key[0] for key in retrieved})):
        own = {key: value for key, value in retrieved.items() if key[0] in members}
        others = {other: by_condition[other] for other in ("zero-shot", FIXED, "random") if other in by_condition}
        found.append(Slice(name, len(members), {other: difference(own, values) for other, values in others.items()}))
    return found


def _groups(categories: Mapping[str, str]) -> Callable[[list[str]], list[tuple[str, frozenset[str]]]]:
    def grouped(questions: list[str]) -> list[tuple[str, frozenset[str]]]:
        names = sorted({categories[question] for question in questions})
        return [(name, frozenset(question for question in questions if categories[question] == name)) for name in names]

    return grouped


def _thirds(similarity: Mapping[str, float]) -> Callable[[list[str]], list[tuple[str, frozenset[str]]]]:
    """Questions in equal parts by the cosine of their nearest demonstration, the furthest first."""

    def grouped(questions: list[str]) -> list[tuple[str, frozenset[str]]]:
        ordered = sorted(questions, key=lambda question: similarity[question])
        parts = [list(part) for part in np.array_split(np.array(ordered, dtype=object), N_NEARNESS) if len(part)]
        return [(f"{similarity[part[0]]:.2f} to {similarity[part[-1]]:.2f}", frozenset(part)) for part in parts]

    return grouped


def _table(found: Table) -> dict[str, Any]:
    return {
        condition: {metric: _rounded(estimate) for metric, estimate in metrics.items()}
        for condition, metrics in found.items()
    }


def _slice(subset: Slice) -> dict[str, Any]:
    return {
        "name": subset.name,
        "n": subset.n,
        "differences": {name: _rounded(estimate) for name, estimate in subset.differences.items()},
    }


def _rounded(estimate: Estimate) -> dict[str, Any]:
    shown = estimate.to_dict()
    ends = {name: None if shown[name] is None else round(shown[name], 4) for name in ("value", "low", "high")}
    return {**ends, "n": estimate.n, "n_questions": estimate.n_prompts}
