"""The figures of a model: the protocol's own, and those common to all protocols."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragalign.comparisons.intervals import intervals
from ragalign.comparisons.judged import Judged, ModelVerdicts
from ragalign.comparisons.metrics import Metric
from ragalign.comparisons.position import Position, position
from ragalign.judging.base import Figures, Protocol
from ragalign.judging.protocols.grouping import group, split_scored
from ragalign.statistics import Estimate, Shares, mean, shares


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a model under one protocol and judge.

    Attributes:
        name: the model's name in the report, with a suffix where it is not unique.
        figures: the protocol's own figures, as the upstream tool computes them.
        intervals: the intervals of those that are means.
        n: scored answers (or turns); both orders count once.
        n_unscored: unscored answers.
        n_prompts: distinct prompts among all answers.
        reasons: why answers are unscored, with counts.
        outcomes: win, tie and lose shares from 0 to 1, of ``preference`` or of each compared aspect.
        means: the mean of each metric, in the metric's unit.
        categories: the headline metric by category of prompt.
        lengths: mean answer lengths by unit (words, characters), where they are recorded.
        position: position bias; None if the order does not vary.
    """

    name: str
    figures: Figures
    intervals: Mapping[str, Estimate]
    n: int
    n_unscored: int
    n_prompts: int
    reasons: Mapping[str, int]
    outcomes: Mapping[str, Shares]
    means: Mapping[str, Estimate]
    categories: Mapping[str, Estimate]
    lengths: Mapping[str, Estimate]
    position: Position | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the protocol's figures under their upstream names, and the common ones under ``common``."""
        common = {
            "n": self.n,
            "n_unscored": self.n_unscored,
            "n_prompts": self.n_prompts,
            "outcomes": {name: _percent(outcome) for name, outcome in self.outcomes.items()},
            "means": _dicts(self.means),
            "categories": _dicts(self.categories),
            "lengths": _dicts(self.lengths),
            "position": self.position.to_dict() if self.position else None,
            "reasons": dict(self.reasons),
        }
        return {"name": self.name, **self.figures.as_dict(), "intervals": _dicts(self.intervals), "common": common}


def summarise(name: str, model: ModelVerdicts, metrics: Sequence[Metric], protocol: Protocol) -> Summary:
    """Compute a model's figures.

    Args:
        name: the model's name in the report.
        model: the model's judged answers.
        metrics: the metrics to compute, the headline first.
        protocol: computes its own figures.
    """
    figures = protocol.aggregate(model.verdicts)[0]
    scored, reasons = split_scored(answer.verdict for answer in model.judged)
    return Summary(
        name=name,
        figures=figures,
        intervals=intervals(figures),
        n=len(scored),
        n_unscored=len(model.judged) - len(scored),
        n_prompts=len({answer.prompt for answer in model.judged}),
        reasons=reasons,
        outcomes=_outcomes(model.judged, metrics, protocol),
        means={metric.name: metric.estimate(model.judged) for metric in metrics},
        categories=_categories(model.judged, metrics),
        lengths=_lengths(model.judged),
        position=position(model.judged),
    )


def _outcomes(judged: Sequence[Judged], metrics: Sequence[Metric], protocol: Protocol) -> dict[str, Shares]:
    if not protocol.is_pairwise:
        return {}
    compared = [metric for metric in metrics if metric.unit == "%" and not metric.parts]
    found = {}
    for metric in compared:
        values, prompts = metric.observe(judged)
        found[metric.name] = shares([None if value is None else value / 100 for value in values], prompts)
    return found


def _categories(judged: Sequence[Judged], metrics: Sequence[Metric]) -> dict[str, Estimate]:
    kinds = group([answer for answer in judged if answer.category is not None], lambda answer: answer.category)
    if len(kinds) < 2 or not metrics:
        return {}
    return {str(members[0].category): metrics[0].estimate(members) for members in kinds}


def _lengths(judged: Sequence[Judged]) -> dict[str, Estimate]:
    counted = {
        "n_words": [answer.n_words for answer in judged],
        "n_characters": [answer.n_characters for answer in judged],
        "n_baseline_characters": [answer.n_baseline_characters for answer in judged],
    }
    prompts = [answer.prompt for answer in judged]
    found = {}
    for name, values in counted.items():
        known = [(float(value), prompt) for value, prompt in zip(values, prompts, strict=True) if value is not None]
        if known:
            found[name] = mean([value for value, _ in known], [prompt for _, prompt in known])
    return found


def _percent(outcome: Shares) -> dict[str, Any]:
    parts = {"win": outcome.win, "tie": outcome.tie, "lose": outcome.lose, "net": outcome.net}
    return {name: share.scaled(100).to_dict() for name, share in parts.items()}


def _dicts(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_dict() for name, estimate in estimates.items()}
