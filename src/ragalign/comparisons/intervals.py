"""Intervals of a protocol's figures: bootstrap over prompts, or Wilson for shares near 0 and 100 percent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ragalign.comparisons.metrics import ValuesByPrompt, mean_of_means
from ragalign.judging.base import Figures, Observations
from ragalign.statistics import Estimate, mean, proportion
from ragalign.statistics.bootstrap import method_name, percentile_interval

_CONFIDENCE = 0.95


def intervals(figures: Figures, *, seed: int = 0) -> dict[str, Estimate]:
    """One estimate per figure that has observations or resamples, in the figure's own unit, at 95 percent.

    Samples, turns and battles of one prompt are resampled together.
    """
    found = {name: _estimate(observed, seed) for name, observed in figures.observations.items()}
    for name, parts in figures.averages.items():
        found[name] = mean_of_means([_observations(figures.observations[part]) for part in parts])
    for name, resampled in figures.resampled.items():
        low, high = percentile_interval(np.array(resampled), _CONFIDENCE)
        found[name] = Estimate(
            value=figures.values[name],
            low=low,
            high=high,
            n=figures.n,
            n_unscored=figures.n_unscored,
            method=method_name(len(resampled)),
            n_prompts=figures.n,
            confidence=_CONFIDENCE,
        )
    return found


def _estimate(observed: Observations, seed: int) -> Estimate:
    if observed.is_share and set(observed.values) <= {0.0, 100.0}:
        estimate = proportion([value / 100 for value in observed.values], observed.prompts, seed=seed).scaled(100)
    else:
        estimate = mean(observed.values, observed.prompts, seed=seed)
    return replace(estimate, n_unscored=observed.n_unscored)


def _observations(observed: Observations) -> ValuesByPrompt:
    # mean_of_means counts None as unscored, whichever prompt it belongs to.
    return [*observed.values, *[None] * observed.n_unscored], [*observed.prompts, *[""] * observed.n_unscored]
