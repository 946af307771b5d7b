"""The similarity of an answer to its references: cosine of embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder


class AnswerSimilarity:
    """Cosine similarity to the nearest reference.

    The encoder truncates long texts; two answers that begin alike are alike to it.

    Args:
        encoder: of answers and references; references are encoded once.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """From -1 to 1; `references` must not be empty."""
        new = [text for text in references if text not in self._known]
        # Both sides as documents: answers are compared with answers, not with questions.
        vectors = _normalised(self._encoder.encode([answer, *new]))
        self._known.update(zip(new, vectors[1:], strict=True))
        return max(float(vectors[0] @ self._known[text]) for text in references)


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths == 0, 1, lengths), dtype=np.float32)
