"""Intervals for the figures of a protocol: a bootstrap over prompts of every figure that is a mean."""

from __future__ import annotations

from dataclasses import replace

from ragalign.judging.base import Figures
from ragalign.statistics import Estimate, mean


def intervals(figures: Figures, *, seed: int = 0) -> dict[str, Estimate]:
    """One estimate per figure in `Figures.samples`, in the figure's own unit, at 95 percent.

    Samples, turns and battles of one prompt are resampled together.
    """
    return {
        name: replace(mean(sample.values, sample.prompts, seed=seed), n_unscored=figures.n_unscored)
        for name, sample in figures.samples.items()
    }
