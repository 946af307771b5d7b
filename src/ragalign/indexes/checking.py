"""Checks that the vectors of an index are valid, and that its FAISS file contains and finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes.faiss_backend import FaissIndex
from ragalign.indexes.manifest import Manifest
from ragalign.indexes.vectors import for_metric, measurable

_BLOCK = 32_768
# Number of vectors to compare when an index is opened, and to search for in `any_problem`.
_COMPARED = 16
_SEARCHED = 256
_FOUND_AT_LEAST = 0.5


def first_problem(vectors: NDArray[np.float32], faiss: FaissIndex, manifest: Manifest) -> str | None:
    """Compare a few vectors with the FAISS file, to detect the file of another index or metric; None if they agree."""
    if faiss.inner_product != (manifest.metric != "l2"):
        return f"the FAISS file was not built for the metric {manifest.metric}"
    rows = _spread(len(vectors), _COMPARED)
    some = for_metric(np.asarray(vectors[rows]), manifest.metric)
    if len(rows) and faiss.gives_rows and (problem := faiss.disagreement(some, rows)):
        return f"the FAISS file does not agree with the vectors: {problem}"
    return None


def any_problem(vectors: NDArray[np.float32], faiss: FaissIndex, manifest: Manifest, ids: Sequence[str]) -> str | None:
    """Check that every vector is valid and that the FAISS file contains and finds it; None if all are.

    Args:
        vectors: ``[n, d]``.
        faiss: the FAISS index built from them.
        manifest: the index's manifest.
        ids: the ids of the ``n`` demonstrations.
    """
    # If directions are compared, a zero vector can only be damage.
    has_lengths = manifest.metric == "cosine" or manifest.encoder.normalize
    for start in range(0, len(vectors), _BLOCK):
        block = np.asarray(vectors[start : start + _BLOCK])
        is_zero: NDArray[np.bool_] = np.logical_not(block.any(axis=1)) & np.bool_(has_lengths)
        bad = ~measurable(block) | is_zero
        if bad.any():
            row = int(np.argmax(bad))
            what = "is zero" if is_zero[row] else "contains NaN, infinity or huge values"
            return f"the vector of the demonstration {ids[start + row]} {what}"
        rows = np.arange(start, start + len(block))
        if problem := faiss.disagreement(for_metric(block, manifest.metric), rows):
            return f"the FAISS file does not agree with the vectors: {problem}"
    rows = _spread(len(vectors), _SEARCHED)
    if len(rows):
        found = faiss.finds(for_metric(np.asarray(vectors[rows]), manifest.metric), rows)
        if found < _FOUND_AT_LEAST:
            return f"the FAISS file finds only {found:.0%} of the vectors when they are searched for"
    return None


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` evenly spaced positions, including the first and the last."""
    return np.unique(np.linspace(0, max(0, n - 1), num=min(n, most), dtype=np.int64))
