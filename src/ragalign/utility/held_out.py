"""How well an encoder ranks candidates by their measured gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.retrieval.batch import unit
from ragalign.retrieval.calibration import TextForm
from ragalign.retrieval.texts import texts_in_form
from ragalign.utility.files import Gain, Gains


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An encoder's ranking of the held-out questions' candidates. Gains are in nats per token, means over questions.

    Attributes:
        n: number of questions.
        chosen: gain of the candidate that the encoder ranks first.
        mean: mean gain of all candidates: what a random choice gets.
        best: highest gain: what a perfect choice gets.
        correlation: rank correlation (Spearman) of similarity and gain; 0 where one of them is constant.
        slope, intercept: of the least-squares line from similarity to gain.
    """

    n: int
    chosen: float
    mean: float
    best: float
    correlation: float
    slope: float
    intercept: float


def evaluate(encoder: Encoder, gains: Gains, lists: Mapping[str, Sequence[Gain]], text: TextForm) -> HeldOut:
    """Compare an encoder's similarities with measured gains, for questions with two candidates or more."""
    names = sorted({gain.candidate for found in lists.values() for gain in found})
    questions = sorted(lists)
    vectors = dict(
        zip(
            names,
            unit(encoder.encode(texts_in_form(text, [gains.demonstrations[name] for name in names]))),
            strict=True,
        )
    )
    asked = unit(encoder.encode([gains.questions[name] for name in questions], kind="query"))
    similar, measured, chosen, correlations = [], [], [], []
    for question, vector in zip(questions, asked, strict=True):
        cosines = np.array([float(vector @ vectors[gain.candidate]) for gain in lists[question]])
        true = np.array([gain.per_token for gain in lists[question]])
        similar.append(cosines)
        measured.append(true)
        chosen.append(true[int(cosines.argmax())])
        correlations.append(_spearman(cosines, true))
    slope, intercept = _line(np.concatenate(similar), np.concatenate(measured))
    return HeldOut(
        n=len(questions),
        chosen=float(np.mean(chosen)),
        mean=float(np.mean([true.mean() for true in measured])),
        best=float(np.mean([true.max() for true in measured])),
        correlation=float(np.mean(correlations)),
        slope=slope,
        intercept=intercept,
    )


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """The least-squares line; of negative slope, a flat one, since an encoder ranks by similarity."""
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
    slope = max(slope, 1e-6)
    return slope, float(y.mean() - slope * x.mean())


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if x.min() == x.max() or y.min() == y.max():
        return 0.0
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)
