"""Bootstrap over prompts: whole prompts are resampled, with all their samples and turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError
from ragalign.statistics.estimate import Estimate, Prompts, Values, as_numbers, check_confidence, group

DEFAULT_RESAMPLES = 10_000
# Draws held in memory at a time: 2**20 of them take 8 MiB, independent of the number of prompts and resamples.
_CHUNK = 2**20


def mean(
    values: Values,
    prompts: Prompts | None = None,
    *,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean over all scored observations, with a percentile interval from resampled prompts.

    Args:
        values: one number per observation; None or NaN where unscored.
        prompts: the prompt of each observation; by default each observation is a prompt of its own.
        n_resamples: bootstrap resamples.
        confidence: the interval's nominal coverage.
        seed: the same seed gives the same interval.

    Raises:
        DataError, ConfigError: as `ragalign.statistics.estimate.group` and `bootstrap`.
    """
    data = group(values, prompts)
    totals, counts = data.totals(), data.counts

    def resampled(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        # The grand mean of a resample, whose number of observations varies when prompts have unequally many.
        return np.asarray((weights @ totals) / (weights @ counts))

    low, high = bootstrap(resampled, data.n_prompts, n_resamples=n_resamples, confidence=confidence, seed=seed)
    return Estimate(
        value=float(data.values.mean()) if data.n else math.nan,
        low=low,
        high=high,
        n=data.n,
        n_unscored=data.n_unscored,
        method=method_name(n_resamples),
        n_prompts=data.n_prompts,
        confidence=confidence,
    )


def paired_difference(
    first: Values,
    second: Values,
    prompts: Prompts | None = None,
    *,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean of first - second over observations with both scores; see `mean`.

    An observation that lacks either score counts as unscored.

    Raises:
        DataError: the lengths differ, or as in `mean`.
    """
    first_numbers, second_numbers = as_numbers(first), as_numbers(second)
    if len(first_numbers) != len(second_numbers):
        raise DataError(f"paired values differ in length: {len(first_numbers)} and {len(second_numbers)}")
    return mean(first_numbers - second_numbers, prompts, n_resamples=n_resamples, confidence=confidence, seed=seed)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n_prompts: int,
    *,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of any figure under resampling of prompts.

    Args:
        statistic: maps how often each prompt is in each resample, float64 [r, n_prompts], to the figure of
            each resample, float64 [r]. NaN marks a resample without a figure; it is left out.
        n_prompts: prompts to draw from, and to draw.
        n_resamples: bootstrap resamples, drawn in chunks of bounded memory.
        confidence: the interval's nominal coverage.
        seed: the same seed gives the same interval.

    Returns:
        The interval's ends (quantiles by linear interpolation); NaN without prompts.

    Raises:
        ConfigError: `n_resamples` or `confidence` is out of range.
    """
    if n_resamples < 1:
        raise ConfigError(f"n_resamples must be at least 1, not {n_resamples}")
    check_confidence(confidence)
    if n_prompts == 0:
        return math.nan, math.nan
    figures = np.concatenate([statistic(weights) for weights in resample(n_prompts, n_resamples, seed)])
    return percentile_interval(figures, confidence)


def resample(n_prompts: int, n_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each prompt is in each resample, in chunks float64 [r, n_prompts] whose rows sum to n_prompts."""
    generator = np.random.default_rng(seed)
    rows_at_once = max(1, _CHUNK // n_prompts)
    for start in range(0, n_resamples, rows_at_once):
        rows = min(rows_at_once, n_resamples - start)
        drawn = generator.integers(0, n_prompts, size=(rows, n_prompts))
        # One bincount for all rows: each row counts in its own range of bins.
        drawn += np.arange(rows)[:, None] * n_prompts
        counts = np.bincount(drawn.ravel(), minlength=rows * n_prompts)
        yield counts.reshape(rows, n_prompts).astype(np.float64)


def percentile_interval(figures: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The central share `confidence` of resampled figures [r]; NaN is left out, infinite ends stay infinite."""
    known = figures[~np.isnan(figures)]
    if not len(known):
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    if np.isfinite(known).all():
        low, high = np.quantile(known, (tail, 1 - tail))
    else:
        # Interpolating between infinities is undefined, so take the outer neighbours.
        low = np.quantile(known, tail, method="lower")
        high = np.quantile(known, 1 - tail, method="higher")
    return float(low), float(high)


def method_name(n_resamples: int) -> str:
    """The text of `Estimate.method` for a bootstrap."""
    return f"percentile bootstrap over prompts, {n_resamples} resamples"
