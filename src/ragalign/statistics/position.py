"""Position bias of a judge that saw both orders of each comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ragalign.errors import DataError
from ragalign.statistics.bootstrap import DEFAULT_RESAMPLES
from ragalign.statistics.estimate import Estimate, Prompts, Values
from ragalign.statistics.shares import check_preferences, proportion


@dataclass(frozen=True, slots=True)
class PositionBias:
    """How much the order of two answers influences the judge.

    Attributes:
        consistency: share of comparisons with the same outcome (win, tie or loss) in both orders, among those
            scored in both; `n` counts comparisons.
        first_position_rate: share of judgements that prefer the answer shown first, among those that prefer
            either; 0.5 is no bias. `n` counts judgements, two per comparison.
        n_ties: judgements that prefer neither, left out of `first_position_rate`.
    """

    consistency: Estimate
    first_position_rate: Estimate
    n_ties: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "consistency": self.consistency.to_dict(),
            "first_position_rate": self.first_position_rate.to_dict(),
            "n_ties": self.n_ties,
        }


def position_bias(
    shown_first: Values,
    shown_second: Values,
    prompts: Prompts | None = None,
    *,
    n_resamples: int = DEFAULT_RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> PositionBias:
    """Consistency and first-position rate (Zheng et al. 2023, arXiv:2306.05685, section 3.3).

    Args:
        shown_first: preference for the model, from 0 to 1, when its answer was shown first; None where unscored.
        shown_second: the same comparisons with the model's answer shown second.
        prompts: the prompt of each comparison; by default each comparison is a prompt of its own.
        n_resamples: bootstrap resamples.
        confidence: the intervals' nominal coverage.
        seed: the same seed gives the same interval.

    Raises:
        DataError: the lengths differ, or a preference lies outside [0, 1].
    """
    first, second = check_preferences(shown_first), check_preferences(shown_second)
    if len(first) != len(second):
        raise DataError(f"both orders need the same comparisons: {len(first)} and {len(second)}")
    # Signs: which side won, +1 the model, 0 neither; NaN is unscored.
    forward, backward = np.sign(first - 0.5), np.sign(second - 0.5)
    is_unscored = np.isnan(forward) | np.isnan(backward)
    is_same = np.where(is_unscored, np.nan, forward == backward)
    towards_first = np.concatenate([forward, -backward])
    is_tie = towards_first == 0
    clusters = list(range(len(first))) if prompts is None else list(prompts)
    if len(clusters) != len(first):
        raise DataError(f"{len(first)} comparisons but {len(clusters)} prompts: give one prompt per comparison")
    decided_by = [prompt for prompt, tie in zip([*clusters, *clusters], is_tie, strict=True) if not tie]
    chose_first = np.where(np.isnan(towards_first), np.nan, towards_first > 0)
    return PositionBias(
        consistency=proportion(is_same, clusters, n_resamples=n_resamples, confidence=confidence, seed=seed),
        first_position_rate=proportion(
            chose_first[~is_tie], decided_by, n_resamples=n_resamples, confidence=confidence, seed=seed
        ),
        n_ties=int(is_tie.sum()),
    )
