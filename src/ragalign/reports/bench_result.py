"""A benchmark's figures: quality beside cost, and in sweeps the effect of every factor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragalign.reports.costs import Costs, Timing
from ragalign.reports.published import Published
from ragalign.statistics import Estimate, SignTest


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a condition's answers are.

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
class Measured:
    """A condition with its figures; `quality` is None where nothing was scored."""

    name: str
    costs: Costs
    quality: Quality | None = None
    levels: Mapping[str, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "levels": dict(self.levels or {}),
            "quality": self.quality.to_dict() if self.quality else None,
            "costs": self.costs.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Level:
    """A level of a factor, over all conditions that have it.

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
    """What a sweep varied, and what came of it."""

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
        label, unit: of the headline metric; empty where nothing was scored.
        baseline: the condition that others are compared with.
        fixed: the condition that prices are relative to.
        conditions: in the order of the run.
        factors: of a sweep.
        published: published results of the same kind, to stand beside.
        timing: how speed was measured; None where it was not.
    """

    facts: Mapping[str, str]
    label: str
    unit: str
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
            "metric": {"label": self.label, "unit": self.unit} if self.label else None,
            "baseline": self.baseline,
            "fixed": self.fixed,
            "conditions": [one.to_dict() for one in self.conditions],
            "factors": [factor.to_dict() for factor in self.factors],
            "published": [one.to_dict() for one in self.published],
            "timing": self.timing.to_dict() if self.timing else None,
        }

    def named(self, name: str) -> Measured:
        """The condition of a name."""
        return next(one for one in self.conditions if one.name == name)


def varying(levels: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """The factors that have more than one level, each with its levels in order of first appearance."""
    names = dict.fromkeys(name for one in levels for name in one)
    found = {name: list(dict.fromkeys(one[name] for one in levels if name in one)) for name in names}
    return {name: values for name, values in found.items() if len(values) > 1}
