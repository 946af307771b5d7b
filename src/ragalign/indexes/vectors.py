"""Vectors as arrays: reading their file, scaling them for a metric, and which of them have scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes.manifest import Metric

# Squared lengths of vectors stay below, so that no score overflows float32 (3.4e38).
_MAX_SQUARED_LENGTH = 1e37


def read_vectors(path: Path) -> NDArray[np.float32]:
    """Memory-map a file of vectors: float32 ``[n, d]``.

    NumPy's own loader would take archives and pickles, too.

    Raises:
        ValueError: the file holds something else; a damaged header can raise almost anything.
    """
    vectors: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    if vectors.dtype != np.dtype("<f4") or vectors.ndim != 2 or not vectors.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {vectors.dtype} of shape {list(vectors.shape)}")
    return vectors


def for_metric(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """As FAISS shall compare them: for the cosine scaled to length 1, zero vectors as they are."""
    if metric != "cosine":
        return np.ascontiguousarray(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1))


def measurable(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows have scores: no NaN, no infinity, and no length that overflows."""
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors) < _MAX_SQUARED_LENGTH)
