"""Quality and cost by method and number of demonstrations, and the break-even of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragalign.statistics import Estimate, mean, proportion
from ragalign.statistics.estimate import finite_or_none
from ragalign.studies.fine_tuning.cells import METHODS, TUNED
from ragalign.studies.fine_tuning.running import Result

# Training runs a forward and a backward pass, and the backward pass is about twice the work (Kaplan et al. 2020,
# arXiv 2001.08361: 6 against 2 operations per weight and token).
TRAINING_WEIGHT = 3


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A method with `n` demonstrations (None if the number does not matter), over all seeds.

    Attributes:
        quality: mean score; the interval resamples prompts with their answers of all seeds, or is Wilson's if hardly
            any prompt differs.
        by_seed: mean score of each seed.
        answer_s: seconds per answer, the median over seeds.
        prompt_tokens, output_tokens, demonstrations: means per answer.
        training_s, training_tokens, response_tokens, steps: means over seeds; 0 without training.
        n_failed: prompts without an answer or a score, over all seeds.
    """

    method: str
    n: int | None
    quality: Estimate
    by_seed: tuple[float, ...]
    answer_s: float
    prompt_tokens: float
    output_tokens: float
    demonstrations: float
    training_s: float
    training_tokens: float
    response_tokens: float
    steps: float
    n_failed: int

    @property
    def name(self) -> str:
        """The method and its number of demonstrations."""
        return self.method if self.n is None else f"{self.method}, {self.n:,}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "method": self.method,
            "n": self.n,
            "quality": self.quality.to_dict(),
            "by_seed": [finite_or_none(value) for value in self.by_seed],
            "seconds_per_answer": round(self.answer_s, 5),
            "prompt_tokens": round(self.prompt_tokens, 1),
            "output_tokens": round(self.output_tokens, 1),
            "demonstrations": round(self.demonstrations, 2),
            "training_seconds": round(self.training_s, 2),
            "training_tokens": round(self.training_tokens),
            "training_response_tokens": round(self.response_tokens),
            "training_steps": round(self.steps, 1),
            "n_failed": self.n_failed,
        }


@dataclass(frozen=True, slots=True)
class BreakEven:
    """The number of queries after which a fine-tuned model has cost less than in-context learning; infinite for never.

    Attributes:
        tuned, in_context: the two points.
        by_seconds: from the measured seconds of training and of answers, on this machine.
        by_tokens: from the tokens processed, with training tokens counted `TRAINING_WEIGHT` times: independent of the
            machine and of prefix caches, which make constant demonstrations nearly free.
    """

    tuned: CurvePoint
    in_context: CurvePoint
    by_seconds: float
    by_tokens: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values; None means never."""
        return {
            "tuned": self.tuned.name,
            "in_context": self.in_context.name,
            "quality_difference": finite_or_none(self.tuned.quality.value - self.in_context.quality.value),
            "queries_by_seconds": finite_or_none(self.by_seconds),
            "queries_by_tokens": finite_or_none(self.by_tokens),
        }


def points(results: Sequence[Result]) -> list[CurvePoint]:
    """One point for each method and number of demonstrations, in the order of methods."""
    groups: dict[tuple[str, int | None], list[Result]] = {}
    for result in results:
        groups.setdefault((result.cell.method, result.cell.n), []).append(result)
    order = sorted(groups, key=lambda key: (METHODS.index(key[0]), key[1] or 0))
    return [_point(method, n, groups[method, n]) for method, n in order]


def break_even(found: Sequence[CurvePoint]) -> list[BreakEven]:
    """Compare each fine-tuned point with the in-context points with as many demonstrations or the whole pool."""
    pairs = []
    for tuned in found:
        if tuned.method in TUNED:
            for other in found:
                if other.method not in TUNED and other.method != "zero-shot" and other.n in (tuned.n, None):
                    seconds = _queries(tuned.training_s, tuned.answer_s, other.answer_s)
                    tokens = _queries(
                        TRAINING_WEIGHT * tuned.training_tokens,
                        tuned.prompt_tokens + tuned.output_tokens,
                        other.prompt_tokens + other.output_tokens,
                    )
                    pairs.append(BreakEven(tuned, other, seconds, tokens))
    return pairs


def _queries(once: float, own: float, others: float) -> float:
    """The number of queries after which `once` plus `own` per query is less than `others` per query."""
    return math.inf if others <= own else float(math.ceil(once / (others - own)))


def _point(method: str, n: int | None, results: Sequence[Result]) -> CurvePoint:
    scores = [(id_, score) for result in results for id_, score in result.scores.items()]
    trained = [result.training or {} for result in results]

    def average(key: str) -> float:
        return float(np.mean([float(training.get(key, 0.0)) for training in trained]))

    return CurvePoint(
        method=method,
        n=n,
        quality=_quality([score for _, score in scores], [id_ for id_, _ in scores]),
        by_seed=tuple(_mean([score for score in result.scores.values() if score is not None]) for result in results),
        answer_s=float(np.median([result.answer_s for result in results])),
        prompt_tokens=_mean([result.prompt_tokens for result in results]),
        output_tokens=_mean([result.output_tokens for result in results]),
        demonstrations=_mean([result.demonstrations for result in results]),
        training_s=average("seconds"),
        training_tokens=average("n_tokens"),
        response_tokens=average("n_response_tokens"),
        steps=average("n_steps"),
        n_failed=sum(len(result.failures) for result in results),
    )


def _quality(scores: list[float | None], prompts: list[str]) -> Estimate:
    """The mean score; if scores are 0 or 1 only, with an interval that is also valid near 0 and 1."""
    if all(score in (0.0, 1.0, None) for score in scores):
        return proportion(scores, prompts)
    return mean(scores, prompts)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
