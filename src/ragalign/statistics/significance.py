"""Significance: the exact sign test, and Holm's correction for multiple tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragalign._optional import require
from ragalign.errors import DataError
from ragalign.statistics.estimate import Prompts, Values, group


@dataclass(frozen=True, slots=True)
class SignTest:
    """An exact two-sided sign test over prompts.

    Attributes:
        p_value: probability of a split at least this uneven if both signs are equally likely; 1 with ties only.
        n_positive, n_negative, n_ties: prompts whose mean difference is above, below and exactly 0. Ties carry
            no information about the direction and do not enter `p_value`.
        n_unscored: observations left out because they have no score.
        method: the test's name.
    """

    p_value: float
    n_positive: int
    n_negative: int
    n_ties: int
    n_unscored: int
    method: str = "exact two-sided sign test, ties left out"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "p_value": self.p_value,
            "n_positive": self.n_positive,
            "n_negative": self.n_negative,
            "n_ties": self.n_ties,
            "n_unscored": self.n_unscored,
            "method": self.method,
        }


def sign_test(differences: Values, prompts: Prompts | None = None) -> SignTest:
    """Test whether differences are as often positive as negative, one vote per prompt.

    The vote of a prompt with several samples or turns is the sign of their sum.

    Args:
        differences: one number per observation, such as preference - 0.5; None or NaN where unscored.
        prompts: the prompt of each observation; by default each observation is a prompt of its own.

    Raises:
        DataError: as `ragalign.statistics.estimate.group`.
    """
    data = group(differences, prompts)
    totals = data.totals()
    # Sums of values such as 0.1 miss zero by rounding errors; such a prompt is a tie.
    votes = np.where(np.abs(totals) <= 1e-9 * data.totals(np.abs(data.values)), 0.0, np.sign(totals))
    n_positive, n_negative = int((votes > 0).sum()), int((votes < 0).sum())
    p_value = 1.0
    if n_positive + n_negative:
        test = require("scipy.stats", "the sign test").binomtest(n_positive, n_positive + n_negative, 0.5)
        p_value = float(test.pvalue)
    return SignTest(
        p_value=p_value,
        n_positive=n_positive,
        n_negative=n_negative,
        n_ties=data.n_prompts - n_positive - n_negative,
        n_unscored=data.n_unscored,
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust p-values for testing several hypotheses, such as aspects (Holm 1979); the names stay.

    Rejecting those that are at most alpha keeps the probability of any false rejection at most alpha.

    Raises:
        DataError: a p-value lies outside [0, 1].
    """
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise DataError(f"the p-value of {name!r} must be between 0 and 1, not {p_value}")
    adjusted: dict[str, float] = {}
    smallest = 0.0
    for rank, (name, p_value) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        # A later hypothesis cannot be more significant than an earlier one.
        smallest = max(smallest, min(1.0, (len(p_values) - rank) * p_value))
        adjusted[name] = smallest
    return {name: adjusted[name] for name in p_values}
