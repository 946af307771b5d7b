"""Shares: proportions with their intervals, and how often a model wins, ties and loses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError
from ragalign.statistics.bootstrap import DEFAULT_RESAMPLES, mean
from ragalign.statistics.estimate import Estimate, Prompts, Values, as_numbers, check_confidence, group

# With fewer varying prompts than this, a bootstrap rarely draws the rare outcome.
_MIN_PROMPTS_EACH_WAY = 5


@dataclass(frozen=True, slots=True)
class Shares:
    """How often a model wins, ties and loses.

    Attributes:
        win, tie, lose: fractions of all scored comparisons; the three values sum to 1.
        net: win share minus lose share, from -1 to 1.
    """

    win: Estimate
    tie: Estimate
    lose: Estimate
    net: Estimate

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: getattr(self, name).to_dict() for name in ("win", "tie", "lose", "net")}


def wilson(n_successes: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), without continuity correction.

    Unlike the normal interval it stays inside [0, 1] and keeps its width at 0 and `n` successes. Both counts can
    be effective sizes, so they need not be whole.

    Raises:
        ConfigError: the counts or the confidence are out of range.
    """
    check_confidence(confidence)
    if n < 0 or not 0 <= n_successes <= n:
        raise ConfigError(f"wilson needs 0 <= successes <= n, not {n_successes} of {n}")
    if n == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = n_successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the extremes one end is the share itself; keep rounding from moving it inside.
    low = 0.0 if n_successes == 0 else max(0.0, centre - half)
    high = 1.0 if n_successes == n else min(1.0, centre + half)
    return low, high


def proportion(
    successes: Values,
    prompts: Prompts | None = None,
    *,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The share of successes.

    One observation per prompt: Wilson's interval. Several: a bootstrap over prompts, except at the extremes (fewer
    than five prompts with a success, or with a failure), where it would be far too narrow: there it is Wilson's
    interval with one observation per prompt.

    Args:
        successes: 1 (or True), 0 (or False), None or NaN where unscored.
        prompts: the prompt of each observation; by default each observation is a prompt of its own.
        n_resamples: bootstrap resamples.
        confidence: the interval's nominal coverage.
        seed: the same seed gives the same interval.

    Raises:
        DataError: a value is neither 0, 1 nor unscored.
    """
    data = group(successes, prompts)
    if not np.isin(data.values, (0.0, 1.0)).all():
        raise DataError("a proportion needs 0 or 1 (or None for unscored) per observation")
    totals, counts = data.totals(), data.counts
    varied = min(int((totals > 0).sum()), int((totals < counts).sum()))
    if data.n_prompts < data.n and varied >= _MIN_PROMPTS_EACH_WAY:
        return mean(successes, prompts, n_resamples=n_resamples, confidence=confidence, seed=seed)
    share = float(data.values.mean()) if data.n else math.nan
    low, high = wilson(share * data.n_prompts if data.n else 0, data.n_prompts, confidence)
    return Estimate(
        value=share,
        low=low,
        high=high,
        n=data.n,
        n_unscored=data.n_unscored,
        method="Wilson" if data.n_prompts == data.n else "Wilson, one observation per prompt",
        n_prompts=data.n_prompts,
        confidence=confidence,
    )


def shares(
    preferences: Values,
    prompts: Prompts | None = None,
    *,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Shares:
    """Win, tie and lose shares of preferences from 0 (lost) over 0.5 (tie) to 1 (won); None where unscored.

    The shares have the intervals of `proportion`; the net share has a bootstrap over prompts.

    Raises:
        DataError: a preference lies outside [0, 1].
    """
    outcomes = np.sign(check_preferences(preferences) - 0.5)  # NaN stays NaN

    def share(outcome: int) -> Estimate:
        flags = np.where(np.isnan(outcomes), np.nan, outcomes == outcome)
        return proportion(flags, prompts, n_resamples=n_resamples, confidence=confidence, seed=seed)

    net = mean(outcomes, prompts, n_resamples=n_resamples, confidence=confidence, seed=seed)
    return Shares(win=share(1), tie=share(0), lose=share(-1), net=net)


def check_preferences(preferences: Values) -> NDArray[np.float64]:
    """Preferences as float64 [n], None as NaN.

    Raises:
        DataError: a preference lies outside [0, 1].
    """
    numbers = as_numbers(preferences)
    outside = numbers[(numbers < 0) | (numbers > 1)]
    if len(outside):
        raise DataError(f"a preference must be between 0 and 1, not {outside[0]:g}")
    return numbers
