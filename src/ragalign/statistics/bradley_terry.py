"""Bradley-Terry strengths of several systems, with ties (Davidson 1970).

System i with worth w_i meets system j:

    P(i wins) = w_i / D,  P(tie) = nu sqrt(w_i w_j) / D,  D = w_i + w_j + nu sqrt(w_i w_j)

With strengths s = log w this is a multinomial logit with the scores (s_i - s_j) / 2, log nu, (s_j - s_i) / 2, so the
log-likelihood is concave and Newton's method finds its maximum; all bootstrap resamples are fitted at once.

R. R. Davidson (1970): On extending the Bradley-Terry model to accommodate ties in paired comparison experiments.
Journal of the American Statistical Association 65, 317-328.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import DataError
from ragalign.statistics.bootstrap import DEFAULT_RESAMPLES, method_name, percentile_interval, resample
from ragalign.statistics.estimate import Estimate, check_confidence, finite_or_none, group
from ragalign.statistics.shares import check_preferences

# A strength this far from the reference (odds of 3 million to 1) has no finite maximum of the likelihood: the
# system won or lost everything.
_INFINITE = 15.0
# Both in comparisons: so small that a finite maximum does not move, while an unbounded strength runs past _INFINITE.
# The ridge keeps Newton's equations solvable where the likelihood is flat, as for a pair that a resample lacks.
_RIDGE = 1e-9
_TOLERANCE = 1e-8
_MAX_STEPS = 60
_MAX_STEP = 2.0
# Resamples fitted at a time, so that memory stays bounded for many systems.
_FITTED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class PairOutcome:
    """One verdict on two systems' answers to one prompt.

    `preference` runs from 0 (`second` is better) over 0.5 (tie) to 1 (`first` is better); None is unscored. Only its
    side of 0.5 counts.
    """

    prompt: Hashable
    first: str
    second: str
    preference: float | None


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """Strengths of several systems.

    Attributes:
        strengths: log worth of each system relative to the reference, best first. Infinite where a system won or
            lost everything, and at the ends of intervals where that happens in resamples.
        tie_log_odds: log nu; a tie is exp(tie_log_odds) times as probable as a win between equals. Minus infinity
            without any tie.
        reference: the system whose strength is 0.
        n: scored comparisons.
        n_unscored: comparisons left out.
    """

    strengths: Mapping[str, Estimate]
    tie_log_odds: float
    reference: str
    n: int
    n_unscored: int

    def probabilities(self, first: str, second: str) -> tuple[float, float, float]:
        """The model's probabilities that `first` wins, ties and loses against `second`; NaN if both are infinite.

        Raises:
            DataError: a system was not compared.
        """
        for name in (first, second):
            if name not in self.strengths:
                raise DataError(f"{name!r} was not compared: choose one of {', '.join(self.strengths)}")
        half = (self.strengths[first].value - self.strengths[second].value) / 2
        if math.isnan(half):
            return (math.nan, math.nan, math.nan)
        if math.isinf(half):
            return (1.0, 0.0, 0.0) if half > 0 else (0.0, 0.0, 1.0)
        if self.tie_log_odds == math.inf:
            return (0.0, 1.0, 0.0)
        scores = np.array([half, self.tie_log_odds, -half])
        odds = np.exp(scores - scores.max())
        win, tie, lose = odds / odds.sum()
        return float(win), float(tie), float(lose)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; infinities become None."""
        return {
            "strengths": {name: strength.to_dict() for name, strength in self.strengths.items()},
            "tie_log_odds": finite_or_none(self.tie_log_odds),
            "reference": self.reference,
            "n": self.n,
            "n_unscored": self.n_unscored,
            "model": "Bradley-Terry with ties (Davidson 1970)",
        }


def fit_bradley_terry(
    comparisons: Sequence[PairOutcome],
    *,
    reference: str | None = None,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> BradleyTerry:
    """Fit strengths by maximum likelihood, with percentile intervals from resampled prompts.

    Args:
        comparisons: verdicts on pairs of systems; unscored ones are counted and left out.
        reference: the system whose strength is 0; by default the first that appears.
        n_resamples: bootstrap resamples.
        confidence: the intervals' nominal coverage.
        seed: the same seed gives the same intervals.

    Raises:
        DataError: no scored comparison, a system compared with itself, groups of systems that were never
            compared with each other, or an unknown reference.
        ConfigError: the confidence is out of range.
    """
    check_confidence(confidence)
    table = _tabulate(comparisons)
    anchor = table.systems[0] if reference is None else reference
    if anchor not in table.systems:
        raise DataError(f"the reference {anchor!r} was not compared: choose one of {', '.join(table.systems)}")
    design, position = table.design, table.systems.index(anchor)
    unlinked = [name for name, is_linked in zip(table.systems, _linked(table, position), strict=True) if not is_linked]
    if unlinked:
        raise DataError(
            f"not linked to {anchor!r} by any chain of comparisons: {', '.join(unlinked)}; fit each group separately"
        )
    point = _fit(table.totals.sum(axis=0)[None, :], design)
    fits = [
        _fit(rows, design, start=point)
        for weights in resample(len(table.totals), n_resamples, seed)
        for rows in _pieces(weights @ table.totals)
    ]
    strengths = _relative(point, position)[0]
    resampled = _relative(np.concatenate(fits), position)
    estimates: dict[str, Estimate] = {}
    for number in sorted(range(len(table.systems)), key=lambda number: -strengths[number]):
        low, high = percentile_interval(resampled[:, number], confidence)
        is_compared = design[:, number] != 0
        estimates[table.systems[number]] = Estimate(
            value=float(strengths[number]),
            low=low,
            high=high,
            n=int(table.totals.reshape(len(table.totals), -1, 3)[:, is_compared].sum()),
            n_unscored=table.unscored[table.systems[number]],
            method=method_name(n_resamples),
            n_prompts=len(table.totals),
            confidence=confidence,
        )
    tie = float(point[0, -1])
    return BradleyTerry(
        strengths=estimates,
        tie_log_odds=tie if abs(tie) < _INFINITE else math.copysign(math.inf, tie),
        reference=anchor,
        n=int(table.totals.sum()),
        n_unscored=sum(comparison.preference is None for comparison in comparisons),
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """Outcomes counted per prompt.

    Attributes:
        systems: names, in order of appearance.
        design: +1/2 and -1/2 at the two systems of each pair, float64 [n_pairs, n_systems].
        totals: wins, ties and losses of each pair's first system, float64 [n_prompts, n_pairs * 3].
        unscored: unscored comparisons of each system.
    """

    systems: list[str]
    design: NDArray[np.float64]
    totals: NDArray[np.float64]
    unscored: dict[str, int]


def _tabulate(comparisons: Sequence[PairOutcome]) -> _Table:
    preferences = check_preferences([comparison.preference for comparison in comparisons])
    systems: dict[str, int] = {}
    pairs: dict[tuple[str, str], int] = {}
    cells: list[int] = []
    unscored: dict[str, int] = {}
    for comparison, preference in zip(comparisons, preferences, strict=True):
        pair = (comparison.first, comparison.second)
        if pair[0] == pair[1]:
            raise DataError(f"prompt {comparison.prompt!r}: {pair[0]!r} is compared with itself")
        for name in pair:
            unscored.setdefault(name, 0)
            unscored[name] += math.isnan(preference)
        if math.isnan(preference):
            continue
        for name in pair:
            systems.setdefault(name, len(systems))
        outcome = 1 - int(np.sign(preference - 0.5))  # 0 win, 1 tie, 2 loss
        if pair[::-1] in pairs:
            pair, outcome = pair[::-1], 2 - outcome
        cells.append(pairs.setdefault(pair, len(pairs)) * 3 + outcome)
    if not cells:
        raise DataError(f"none of the {len(comparisons)} comparisons is scored: nothing to fit")
    design = np.zeros((len(pairs), len(systems)))
    for (first, second), row in pairs.items():
        design[row, systems[first]], design[row, systems[second]] = 0.5, -0.5
    data = group(preferences, [comparison.prompt for comparison in comparisons])
    totals = np.zeros((data.n_prompts, len(pairs) * 3))
    np.add.at(totals, (data.codes, np.array(cells)), 1.0)
    return _Table(list(systems), design, totals, unscored)


def _linked(table: _Table, start: int) -> NDArray[np.bool_]:
    """Which systems were compared with system `start`, directly or through others, bool [n_systems]."""
    touches = table.design != 0
    adjacent = touches.T.astype(np.int64) @ touches.astype(np.int64) > 0
    linked = np.arange(len(table.systems)) == start
    for _ in table.systems:
        linked = adjacent[linked].any(axis=0)
    return np.asarray(linked)


def _pieces(rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    return [rows[start : start + _FITTED_AT_ONCE] for start in range(0, len(rows), _FITTED_AT_ONCE)]


def _relative(parameters: NDArray[np.float64], reference: int) -> NDArray[np.float64]:
    """Strengths relative to the reference, float64 [r, n_systems]; infinite without a finite maximum."""
    strengths = parameters[:, :-1] - parameters[:, reference : reference + 1]
    return np.where(np.abs(strengths) < _INFINITE, strengths, np.copysign(np.inf, strengths))


def _fit(
    totals: NDArray[np.float64], design: NDArray[np.float64], start: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Newton's method with step halving on all rows at once.

    Args:
        totals: outcomes of each fit, float64 [r, n_pairs * 3].
        design: see `_Table`.
        start: initial parameters, float64 [1, n_systems + 1].

    Returns:
        Strengths, up to a constant, and log nu: float64 [r, n_systems + 1].
    """
    n_pairs, n_systems = design.shape
    counts = totals.reshape(-1, n_pairs, 3)
    per_pair = counts.sum(axis=2)
    size = per_pair.sum(axis=1)
    parameters = np.zeros((len(counts), n_systems + 1)) if start is None else np.repeat(start, len(counts), axis=0)
    parameters = np.clip(parameters, -_INFINITE, _INFINITE)

    def log_likelihood(at: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        half = at[:, :-1] @ design.T
        scores = np.stack([half, np.broadcast_to(at[:, -1:], half.shape), -half], axis=2)
        top = scores.max(axis=2, keepdims=True)
        log_sum = top + np.log(np.exp(scores - top).sum(axis=2, keepdims=True))
        value = (counts * (scores - log_sum)).sum(axis=(1, 2)) - _RIDGE / 2 * (at**2).sum(axis=1)
        return value, np.exp(scores - log_sum)

    value, expected = log_likelihood(parameters)
    for _ in range(_MAX_STEPS):
        surplus = counts - per_pair[:, :, None] * expected
        gradient = np.concatenate(
            [(surplus[:, :, 0] - surplus[:, :, 2]) @ design, surplus[:, :, 1].sum(axis=1, keepdims=True)], axis=1
        )
        gradient -= _RIDGE * parameters
        if np.abs(gradient).max() <= _TOLERANCE:
            break
        step = np.linalg.solve(_information(per_pair, expected, design), gradient[:, :, None])[:, :, 0]
        step = np.clip(step, -_MAX_STEP, _MAX_STEP)
        for _ in range(30):
            new_value, new_expected = log_likelihood(parameters + step)
            is_worse = new_value < value - 1e-12 * size
            if not is_worse.any():
                break
            step[is_worse] /= 2
        parameters, value, expected = parameters + step, new_value, new_expected
    return parameters


def _information(
    per_pair: NDArray[np.float64],
    expected: NDArray[np.float64],
    design: NDArray[np.float64],
) -> NDArray[np.float64]:
    """The negative Hessian, float64 [r, n_systems + 1, n_systems + 1]."""
    win, tie, lose = (expected[:, :, outcome] for outcome in range(3))
    lead = win - lose
    size = design.shape[1]
    matrix = np.empty((len(per_pair), size + 1, size + 1))
    matrix[:, :size, :size] = np.einsum(
        "rp,pi,pj->rij", per_pair * (win + lose - lead**2), design, design, optimize=True
    )
    matrix[:, :size, size] = -(per_pair * lead * tie) @ design
    matrix[:, size, :size] = matrix[:, :size, size]
    matrix[:, size, size] = (per_pair * tie * (1 - tie)).sum(axis=1)
    diagonal = np.arange(size + 1)
    # The strengths' sum is free; a unit of curvature along it keeps the matrix regular and leaves it at its start.
    matrix[:, :size, :size] += per_pair.sum(axis=1)[:, None, None] / size**2
    matrix[:, diagonal, diagonal] += _RIDGE
    return matrix
