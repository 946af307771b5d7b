"""Agreement between judges, and between judges and people: Cohen's kappa and Krippendorff's alpha."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign.errors import DataError
from ragalign.judging.base import Verdict

Level: TypeAlias = Literal["nominal", "interval"]
"""How ratings are compared: as equal or different (win, tie, lose), or by their distance (scores)."""

Ratings: TypeAlias = Mapping[str, Mapping[Hashable, float]]
"""Ratings by rater and unit."""

PREFERENCE = "preference"


@dataclass(frozen=True, slots=True)
class PairAgreement:
    """Two raters on the units that both rated.

    Attributes:
        first, second: the raters.
        n: units that both rated.
        observed: share of units with the same rating, in percent; None without common units.
        kappa: Cohen's kappa (quadratic weights for scores); None where it is undefined, such as when both raters
            always give the same rating.
    """

    first: str
    second: str
    n: int
    observed: float | None
    kappa: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of raters on one rating.

    Attributes:
        rating: `PREFERENCE`, or the name of a score.
        level: how the ratings were compared.
        raters: in order of first appearance.
        n_units: units that at least two raters rated.
        alpha: Krippendorff's alpha over all raters; None where it is undefined.
        pairs: the agreement of each pair of raters.
    """

    rating: str
    level: Level
    raters: tuple[str, ...]
    n_units: int
    alpha: float | None
    pairs: tuple[PairAgreement, ...]

    def as_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "rating": self.rating,
            "level": self.level,
            "raters": list(self.raters),
            "n_units": self.n_units,
            "krippendorff_alpha": self.alpha,
            "pairs": [
                {
                    "raters": [pair.first, pair.second],
                    "n": pair.n,
                    "observed_agreement": pair.observed,
                    "cohen_kappa": pair.kappa,
                }
                for pair in self.pairs
            ],
        }


def unit_of(verdict: Verdict) -> Hashable:
    """The rated answer's key, the same for all judges and for both orders."""
    return verdict.model, verdict.baseline, verdict.item_id, verdict.sample, verdict.turn


def ratings(
    verdicts: Sequence[Verdict], raters: Sequence[str] | None = None
) -> dict[str, dict[str, dict[Hashable, float]]]:
    """The judges' ratings, by rating, rater and unit.

    A preference becomes 1 (win), 0.5 (tie) or 0 (lose), by its mean over both orders. Scores are not changed.

    Args:
        verdicts: verdicts of any number of judges; unscored ones are left out.
        raters: the rater of each verdict; by default the judge.
    """
    names = raters if raters is not None else [verdict.judge for verdict in verdicts]
    collected: dict[str, dict[str, dict[Hashable, list[float]]]] = {}
    for verdict, name in zip(verdicts, names, strict=True):
        pairwise = verdict.preference is not None
        said = {PREFERENCE: float(verdict.preference or 0.0)} if pairwise else dict(verdict.scores)
        for rating, value in said.items():
            collected.setdefault(rating, {}).setdefault(name, {}).setdefault(unit_of(verdict), []).append(value)
    return {
        rating: {
            name: {unit: _decide(rating, values) for unit, values in units.items()} for name, units in by_rater.items()
        }
        for rating, by_rater in collected.items()
    }


def agree(rating: str, said: Ratings, level: Level) -> Agreement:
    """Compute the agreement of all raters and of each pair.

    Raises:
        DataError: there are fewer than two raters.
    """
    if len(said) < 2:
        only = next(iter(said), "none")
        raise DataError(f"agreement on {rating} needs at least two raters; found only {only}")
    units = list(dict.fromkeys(unit for values in said.values() for unit in values))
    table = np.array([[values.get(unit, np.nan) for unit in units] for values in said.values()], dtype=np.float64)
    pairs = tuple(
        _pair(first, second, table[i], table[j], level) for (i, first), (j, second) in combinations(enumerate(said), 2)
    )
    n_units = int((np.sum(~np.isnan(table), axis=0) >= 2).sum())
    return Agreement(rating, level, tuple(said), n_units, krippendorff_alpha(table, level), pairs)


def cohen_kappa(first: NDArray[np.float64], second: NDArray[np.float64], level: Level) -> float | None:
    """Cohen's kappa of two raters, shape [n] each, without missing ratings; None where it is undefined.

    For scores the weights are quadratic in the distance of the scores, so kappa is one minus the mean squared
    difference over the one expected by chance (Cohen 1968); scales with gaps then need no list of labels.
    """
    if len(first) == 0:
        return None
    if level == "interval":
        expected = np.var(first) + np.var(second) + (np.mean(first) - np.mean(second)) ** 2
        return float(1 - np.mean((first - second) ** 2) / expected) if expected > 0 else None
    if len(np.union1d(first, second)) < 2:
        return None
    metrics = require("sklearn.metrics", "Cohen's kappa")
    return float(metrics.cohen_kappa_score(first.astype(str), second.astype(str)))


def krippendorff_alpha(table: NDArray[np.float64], level: Level) -> float | None:
    """Krippendorff's alpha: one minus observed over expected disagreement (Krippendorff 2011).

    Args:
        table: shape [raters, units], NaN where a rater did not rate a unit; units with one rating do not count.
        level: how ratings are compared.

    Returns:
        1 for perfect agreement, 0 for chance; None if all ratings are the same or no unit has two.
    """
    present = ~np.isnan(table)
    table = table[:, present.sum(axis=0) >= 2]
    values = np.unique(table[~np.isnan(table)])
    if len(values) < 2:
        return None
    counts = np.stack([(table == value).sum(axis=0) for value in values]).astype(np.float64)  # [values, units]
    per_unit = counts.sum(axis=0)
    coincidences = (counts / (per_unit - 1)) @ counts.T - np.diag((counts / (per_unit - 1)).sum(axis=1))
    totals = coincidences.sum(axis=1)
    n = totals.sum()
    difference = values[:, None] - values[None, :]
    distance = difference**2 if level == "interval" else (difference != 0).astype(np.float64)
    observed = float((coincidences * distance).sum() / n)
    expected = float((np.outer(totals, totals) * distance).sum() / (n * (n - 1)))
    return 1 - observed / expected


def level_of(rating: str, pairwise: bool) -> Level:
    """The level of a rating: nominal for preferences and aspects of comparisons, interval for scores of answers."""
    return "nominal" if pairwise or rating == PREFERENCE else "interval"


def _decide(rating: str, values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return 0.5 + 0.5 * float(np.sign(mean - 0.5)) if rating == PREFERENCE else mean


def _pair(
    first: str, second: str, left: NDArray[np.float64], right: NDArray[np.float64], level: Level
) -> PairAgreement:
    both = ~np.isnan(left) & ~np.isnan(right)
    left, right = left[both], right[both]
    observed = 100 * float(np.mean(left == right)) if len(left) else None
    return PairAgreement(first, second, len(left), observed, cohen_kappa(left, right, level))
