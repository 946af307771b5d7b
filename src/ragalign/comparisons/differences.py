"""Models against each other: paired differences on the same prompts, and Bradley-Terry strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from ragalign.comparisons.judged import Judged, ModelVerdicts
from ragalign.comparisons.metrics import Metric, mean_of_means
from ragalign.errors import DataError
from ragalign.statistics import BradleyTerry, Estimate, PairOutcome, SignTest, fit_bradley_terry, holm, mean, sign_test


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of one model minus the same metric of another, on the prompts that both answered.

    Attributes:
        first, second: the models' names in the report.
        metric: the metric's name.
        label: the metric's display name.
        unit: ``%`` means percentage points.
        lower_is_better: whether a negative difference favours the first model.
        estimate: the difference, with an interval from resampled prompts.
        test: the exact sign test over prompts.
        p_adjusted: its p-value after Holm's correction, over all pairs of models for the headline metric and over
            all pairs and aspects for aspects.
        n_prompts: prompts that both answered; the others are left out of all figures.
    """

    first: str
    second: str
    metric: str
    label: str
    unit: str
    estimate: Estimate
    test: SignTest
    p_adjusted: float
    n_prompts: int
    lower_is_better: bool = False

    @property
    def n_better(self) -> int:
        """Prompts on which the first model is better."""
        return self.test.n_negative if self.lower_is_better else self.test.n_positive

    @property
    def n_worse(self) -> int:
        """Prompts on which the first model is worse."""
        return self.test.n_positive if self.lower_is_better else self.test.n_negative

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "metric": self.metric,
            "unit": self.unit,
            "difference": self.estimate.to_dict(),
            "sign_test": self.test.to_dict(),
            "p_adjusted": self.p_adjusted,
            "n_prompts": self.n_prompts,
            "lower_is_better": self.lower_is_better,
            "n_better": self.n_better,
            "n_worse": self.n_worse,
        }


def differences(
    models: Mapping[str, ModelVerdicts], metrics: Sequence[Metric], *, against: str | None = None
) -> list[Difference]:
    """Compare all pairs of models on the headline metric, every aspect and every computed metric.

    Args:
        models: the judged answers by the model's name.
        metrics: the headline first.
        against: compare every other model with this one only; None compares all pairs.
    """
    pairs = list(combinations(models, 2))
    if against is not None and against in models:
        pairs = [(name, against) for name in models if name != against]
    headline, aspects = metrics[:1], [metric for metric in metrics if metric.is_aspect or metric.is_computed]
    found = []
    for family in (headline, [metric for metric in aspects if metric not in headline]):
        members = [
            _difference((left, right), metric, models[left].judged, models[right].judged)
            for metric in family
            for left, right in pairs
        ]
        members = [member for member in members if member.n_prompts]
        adjusted = holm({str(number): member.test.p_value for number, member in enumerate(members)})
        found += [replace(member, p_adjusted=adjusted[str(number)]) for number, member in enumerate(members)]
    return found


def strengths(models: Mapping[str, ModelVerdicts]) -> BradleyTerry | None:
    """Bradley-Terry strengths of three or more systems, the baselines among them; None if they cannot be fitted."""
    # With one baseline, entries can be runs of the same model; with several, a model is one system in all its entries.
    is_star = len({model.baseline for model in models.values()}) == 1
    comparisons = [
        PairOutcome(answer.prompt, name if is_star else model.model, model.baseline, answer.verdict.preference)
        for name, model in models.items()
        if model.baseline is not None
        for answer in model.judged
    ]
    systems = {name for outcome in comparisons for name in (outcome.first, outcome.second)}
    baselines = [outcome.second for outcome in comparisons]
    if len(systems) < 3 or all(outcome.preference is None for outcome in comparisons):
        return None
    try:
        return fit_bradley_terry(comparisons, reference=max(baselines, key=baselines.count))
    except DataError:  # groups of systems that were never compared, or a model compared with itself
        return None


def _difference(
    names: tuple[str, str], metric: Metric, first: Sequence[Judged], second: Sequence[Judged]
) -> Difference:
    parts = metric.differences(first, second)
    estimate = mean_of_means(parts) if len(parts) > 1 else mean(*parts[0])
    values = [value for part, _ in parts for value in part]
    prompts = [prompt for _, part in parts for prompt in part]
    test = sign_test(values, prompts)
    n_prompts = len(set(prompts))
    return Difference(
        *names,
        metric.name,
        metric.label,
        metric.unit,
        estimate,
        test,
        test.p_value,
        n_prompts,
        metric.lower_is_better,
    )
