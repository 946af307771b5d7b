"""Clustering queries by their common candidates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragalign.planning.batch import CandidateBatch

_DIMENSION = 64
_ROUNDS = 6
_ROWS = 2048


def cluster(batch: CandidateBatch, n: int) -> NDArray[np.int64]:
    """Assign queries to at most `n` clusters, int64 [m], by k-means over sketches of their candidates.

    The candidates of a query, weighted by their gains, are a sparse vector over all demonstrations. A random projection
    to 64 dimensions approximately preserves the angles between queries (Johnson and Lindenstrauss, 1984), at the cost
    of reading the candidates once.
    """
    random = np.random.default_rng(0)
    directions = random.standard_normal((len(batch.lengths) + 1, _DIMENSION)).astype(np.float32)
    directions[-1] = 0  # for missing candidates
    sketches = np.zeros((len(batch), _DIMENSION), dtype=np.float32)
    for column in range(batch.items.shape[1]):
        sketches += batch.gains[:, column, None].astype(np.float32) * directions[batch.items[:, column]]
    sketches /= np.maximum(np.linalg.norm(sketches, axis=1, keepdims=True), 1e-12)
    centres = sketches[random.choice(len(sketches), min(n, len(sketches)), replace=False)]
    found = np.zeros(len(sketches), dtype=np.int64)
    for _ in range(_ROUNDS):
        for start in range(0, len(sketches), _ROWS):
            found[start : start + _ROWS] = (sketches[start : start + _ROWS] @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, found, sketches)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-12), centres)
    return found
