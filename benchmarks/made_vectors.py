"""A million vectors with the structure of real embeddings, made from some thousand real ones.

A made vector is a real one plus a random step within the span of its nearest real neighbours, scaled to length 1.
How many neighbours span it and how far it goes is chosen so that a sample of made vectors, as large as the set of
real ones, agrees with them: in the median distance to the tenth neighbour, and in the intrinsic dimension (the maximum
likelihood estimate of Levina and Bickel 2004 over ten neighbours, averaged as MacKay and Ghahramani advise).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import faiss
import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder, TextKind

Vectors = NDArray[np.float32]

_NEIGHBOURS = 10
_SPANS = (8, 12, 16, 24, 32, 48, 64)


def sentences(texts: Iterable[str], fewest: int = 20, most: int = 300) -> list[str]:
    """Sentences and lines of texts, without repetitions, of ``fewest`` to ``most`` characters."""
    pieces = (piece.strip() for text in texts for piece in re.split(r"(?<=[.!?])\s+|\n+", text))
    return list(dict.fromkeys(piece for piece in pieces if fewest <= len(piece) <= most))


def structure(vectors: Vectors) -> dict[str, float]:
    """Median squared distances to the first and tenth neighbour, and the intrinsic dimension."""
    distances, _ = _nearest(vectors, _NEIGHBOURS)
    distances = np.sqrt(np.maximum(distances, 1e-12))
    usable = distances[distances[:, 0] > 1e-3]  # repetitions tell nothing about dimensions
    logs = np.log(usable[:, -1:] / usable[:, :-1])
    return {
        "median_distance_1": round(float(np.median(distances[:, 0])), 4),
        "median_distance_10": round(float(np.median(distances[:, -1])), 4),
        "intrinsic_dimension": round(float(1 / logs.mean()), 2),
    }


class Maker:
    """Makes vectors like the real ones given: float32 [r, d], of length 1."""

    def __init__(self, real: Vectors, seed: int = 0) -> None:
        self._real = real
        self._random = np.random.default_rng(seed)
        self._neighbours = _nearest(real, max(_SPANS))[1]
        self.real = structure(real)
        self.span, self.step = self._fit()

    def make(self, n: int) -> Vectors:
        """``n`` vectors [n, d], in random order."""
        vectors = self._make(n, self.span, self.step)
        self._random.shuffle(vectors)
        return vectors

    def _fit(self) -> tuple[int, float]:
        found = []
        for span in _SPANS:
            low, high = 0.0, 4.0
            for _ in range(8):
                step = (low + high) / 2
                made = structure(self._make(len(self._real), span, step))
                if made["median_distance_10"] < self.real["median_distance_10"]:
                    low = step
                else:
                    high = step
            found.append((abs(made["intrinsic_dimension"] - self.real["intrinsic_dimension"]), span, step))
        return min(found)[1:]

    def _make(self, n: int, span: int, step: float) -> Vectors:
        made = np.empty((n, self._real.shape[1]), dtype=np.float32)
        counts = np.bincount(self._random.integers(len(self._real), size=n), minlength=len(self._real))
        end = 0
        for anchor in np.flatnonzero(counts):
            start, end = end, end + int(counts[anchor])
            around = self._real[self._neighbours[anchor, :span]] - self._real[anchor]
            draw = self._random.standard_normal((end - start, span), dtype=np.float32)
            made[start:end] = self._real[anchor] + step / np.sqrt(span) * draw @ around
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return made


def _nearest(vectors: Vectors, k: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Squared distances and positions of the k nearest others."""
    distances, positions = faiss.knn(vectors, vectors, k + 1)
    return distances[:, 1:], positions[:, 1:]


class MadeEncoder(Encoder):
    """Looks vectors up in a file: a text ends in its row's number."""

    id, revision, normalize = "made", "1", True
    query_prompt = document_prompt = ""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors

    @property
    def dimension(self) -> int:
        """Length of the vectors."""
        return int(self._vectors.shape[1])

    def encode(self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False) -> Vectors:
        """The rows of the texts' numbers."""
        return np.ascontiguousarray(self._vectors[[int(text.rpartition(" ")[2]) for text in texts]])
