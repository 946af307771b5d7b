"""Arrays of vectors: reading them, preparing them for a metric, and checking their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes.manifest import Metric

# Upper limit of squared lengths, so that no score overflows float32 (3.4e38).
_MAX_SQUARED_LENGTH = 1e37


def read_vectors(path: Path) -> NDArray[np.float32]:
    """Memory-map a file of vectors: float32 ``[n, d]``.

    np.load would also accept archives and pickles.

    Raises:
        ValueError: the file contains something else; a damaged header can raise almost anything.
    """
    vectors: NDArray[np.float32] = np.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    if vectors.dtype != np.dtype("<f4") or vectors.ndim != 2 or not vectors.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {vectors.dtype} of shape {list(vectors.shape)}")
    return vectors


def for_metric(vectors: NDArray[np.float32], metric: Metric) -> NDArray[np.float32]:
    """Prepare vectors for FAISS: scaled to length 1 for the cosine, except zero vectors."""
    if metric != "cosine":
        return np.ascontiguousarray(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1))


def measurable(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The rows with valid scores, as a mask: no NaN, no infinity, and no length that overflows."""
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors) < _MAX_SQUARED_LENGTH)
