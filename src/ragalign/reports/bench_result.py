"""A benchmark's results: quality and cost and, for sweeps, the effect of every factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ragalign.reports.costs import Costs, Timing
from ragalign.reports.published import Published
from ragalign.statistics import Estimate, SignTest

_LIKELIHOOD = ("nll", "nll_first32", "bits_per_token")


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of a condition's answers.

    Attributes:
        estimate: the headline metric.
        difference: minus the baseline on the same prompts, with a paired interval; None for the baseline itself.
        test: the exact sign test of that difference.
    """

    estimate: Estimate
    difference: Estimate | None = None
    test: SignTest | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "estimate": self.estimate.to_dict(),
            "difference": self.difference.to_dict() if self.difference else None,
            "sign_test": self.test.to_dict() if self.test else None,
        }


@dataclass(frozen=True, slots=True)
class MetricName:
    """A metric of a benchmark, with its name and label."""

    name: str
    label: str
    unit: str
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A condition with its figures.

    Attributes:
        name: the condition's.
        costs: per request.
        levels: of a sweep's factors.
        qualities: by every metric, by its name.
    """

    name: str
    costs: Costs
    qualities: Mapping[str, Quality] = field(default_factory=dict)
    levels: Mapping[str, str] | None = None

    @property
    def quality(self) -> Quality | None:
        """The quality by the headline metric; None if it scored nothing."""
        return next(iter(self.qualities.values()), None)

    def by(self, metric: str) -> Quality | None:
        """The quality by one metric; None if it scored nothing."""
        return self.qualities.get(metric)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "levels": dict(self.levels or {}),
            "quality": self.quality.to_dict() if self.quality else None,
            "qualities": {name: quality.to_dict() for name, quality in self.qualities.items()},
            **({"reference_likelihood": self._reference_likelihood()} if "nll" in self.qualities else {}),
            "costs": self.costs.to_dict(),
        }

    def _reference_likelihood(self) -> dict[str, Any]:
        """The figures of the metric in one place: means over prompts, intervals, and differences from the baseline."""
        chosen = {name: self.qualities[name] for name in _LIKELIHOOD if name in self.qualities}
        return {
            "n": self.qualities["nll"].estimate.n,
            "n_unscored": self.qualities["nll"].estimate.n_unscored,
            **{name: quality.estimate.value for name, quality in chosen.items()},
            "intervals": {name: [quality.estimate.low, quality.estimate.high] for name, quality in chosen.items()},
            "differences": {
                name: quality.difference.to_dict() for name, quality in chosen.items() if quality.difference
            },
        }


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a factor, averaged over all conditions that have it.

    Attributes:
        name: the level.
        n_conditions: how many conditions have it.
        estimate: the mean of the headline metric; None where nothing was scored.
        prompt_tokens: mean tokens of a prompt.
    """

    name: str
    n_conditions: int
    estimate: Estimate | None
    prompt_tokens: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "level": self.name,
            "n_conditions": self.n_conditions,
            "estimate": self.estimate.to_dict() if self.estimate else None,
            "prompt_tokens": None if math.isnan(self.prompt_tokens) else self.prompt_tokens,
        }


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor of a sweep with its levels."""

    name: str
    levels: tuple[Level, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"factor": self.name, "levels": [level.to_dict() for level in self.levels]}


@dataclass(frozen=True, slots=True)
class Bench:
    """The figures of a run.

    Attributes:
        facts: what was run, for people: model, prompts, machine.
        metrics: the headline first; none where nothing was scored.
        baseline: the condition that others are compared with.
        fixed: the condition that prices are relative to.
        conditions: in the order of the run.
        factors: of a sweep.
        published: published results of the same kind, to show beside.
        timing: how speed was measured; None where it was not.
    """

    facts: Mapping[str, str]
    metrics: tuple[MetricName, ...]
    baseline: str | None
    fixed: str | None
    conditions: tuple[Measured, ...]
    factors: tuple[Factor, ...] = ()
    published: tuple[Published, ...] = ()
    timing: Timing | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "facts": dict(self.facts),
            "metric": asdict(self.metrics[0]) if self.metrics else None,
            "metrics": [asdict(metric) for metric in self.metrics],
            "best": {metric.name: self.best_by(metric) for metric in self.metrics},
            "baseline": self.baseline,
            "fixed": self.fixed,
            "conditions": [condition.to_dict() for condition in self.conditions],
            "factors": [factor.to_dict() for factor in self.factors],
            "published": [result.to_dict() for result in self.published],
            "timing": self.timing.to_dict() if self.timing else None,
        }

    @property
    def label(self) -> str:
        """The headline metric's; empty if nothing was scored."""
        return self.metrics[0].label if self.metrics else ""

    @property
    def unit(self) -> str:
        """The headline metric's; empty if nothing was scored."""
        return self.metrics[0].unit if self.metrics else ""

    def best_by(self, metric: MetricName) -> str | None:
        """The condition with the best figure, the first of several; None where nothing was scored."""
        qualities = {condition.name: condition.by(metric.name) for condition in self.conditions}
        found = {name: quality.estimate.value for name, quality in qualities.items() if quality is not None}
        found = {name: value for name, value in found.items() if not math.isnan(value)}
        sign = -1 if metric.lower_is_better else 1
        return max(found, key=lambda name: sign * found[name], default=None)

    def named(self, name: str) -> Measured:
        """The condition with this name."""
        return next(condition for condition in self.conditions if condition.name == name)


def varying(levels: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The factors that have more than one level, each with its levels in order of first appearance."""
    names = dict.fromkeys(name for level in levels for name in level)
    found = {name: list(dict.fromkeys(level[name] for level in levels if name in level)) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}
