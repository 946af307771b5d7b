"""Statistics of a comparison: every figure with its interval, clustered by prompt.

Several samples or turns of one prompt are not independent, so prompts are resampled and counted
(Miller 2024, arXiv:2411.00640). Below a few hundred prompts normal-theory intervals are too narrow (Bowyer et
al. 2025, arXiv:2503.01747): means use a percentile bootstrap, shares a Wilson interval where it applies.
Rates are fractions from 0 to 1; `Estimate.scaled` turns them into percent.
"""

from ragalign.statistics.bootstrap import bootstrap, mean, paired_difference
from ragalign.statistics.bradley_terry import BradleyTerry, PairOutcome, fit_bradley_terry
from ragalign.statistics.estimate import Estimate
from ragalign.statistics.position import PositionBias, position_bias
from ragalign.statistics.power import detectable_difference, paired_power, prompts_needed
from ragalign.statistics.shares import Shares, proportion, shares, wilson
from ragalign.statistics.significance import SignTest, holm, sign_test

__all__ = [
    "BradleyTerry",
    "Estimate",
    "PairOutcome",
    "PositionBias",
    "Shares",
    "SignTest",
    "bootstrap",
    "detectable_difference",
    "fit_bradley_terry",
    "holm",
    "mean",
    "paired_difference",
    "paired_power",
    "position_bias",
    "prompts_needed",
    "proportion",
    "shares",
    "sign_test",
    "wilson",
]
