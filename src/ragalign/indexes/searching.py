"""Searching an index: FAISS where it can, and exactly where it cannot."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError, IndexMismatchError
from ragalign.indexes import faiss_backend
from ragalign.indexes.faiss_backend import FaissIndex, Found
from ragalign.indexes.manifest import Manifest
from ragalign.indexes.vectors import for_metric, measurable

_BLOCK = 32_768


class Searcher:
    """Searches the vectors of an index.

    Args:
        vectors: ``[n, d]``.
        faiss: the FAISS index built from them.
        manifest: the index's manifest.
    """

    def __init__(self, vectors: NDArray[np.float32], faiss: FaissIndex, manifest: Manifest) -> None:
        self._vectors, self._faiss = vectors, faiss
        self._metric, self._encoder = manifest.metric, manifest.encoder

    def search(self, vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None) -> Found:
        """Find the k closest vectors; see `ragalign.indexes.Index.search`."""
        queries = self._check_queries(vectors)
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        mask = self._check_mask(allowed)
        queries = for_metric(queries, self._metric)
        available = len(self._vectors) if mask is None else int(np.count_nonzero(mask))
        n_results = min(k, available)
        if n_results == 0 or len(queries) == 0:
            return _padded((np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)), k)
        if mask is None:
            found: Found | None = self._faiss.search(queries, n_results)
        else:
            found = self._faiss.search_allowed(queries, n_results, mask)
        if found is None:
            found = self._search_exactly(queries, n_results, mask)
        else:
            # An approximate kind can find fewer than k; search these queries exactly.
            short = (found[1] < 0).any(axis=1)
            if short.any():
                found[0][short], found[1][short] = self._search_exactly(queries[short], n_results, mask)
        return _padded(_ordered(*found), k)

    def _search_exactly(self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None) -> Found:
        """Search the allowed rows exactly, block by block."""
        rows = np.arange(len(self._vectors)) if mask is None else np.flatnonzero(mask)
        scores = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), 0), -1, dtype=np.int64)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            some = faiss_backend.search_rows(
                queries,
                for_metric(self._vectors[block], self._metric),
                k,
                inner_product=self._metric != "l2",
            )
            scores = np.concatenate([scores, some[0]], axis=1)
            positions = np.concatenate([positions, block[some[1]]], axis=1)
            best = np.lexsort((positions, -scores), axis=1)[:, :k]
            scores = np.take_along_axis(scores, best, axis=1)
            positions = np.take_along_axis(positions, best, axis=1)
        return scores, positions

    def _check_queries(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self._encoder.dimension:
            raise IndexMismatchError(
                f"queries have the shape {list(np.shape(vectors))}, this index needs [m, {self._encoder.dimension}]; "
                f"encode them with {self._encoder.id!r}"
            )
        if not measurable(queries).all():
            raise DataError("a query vector contains NaN, infinity or huge values; check its text and the encoder")
        return queries

    def _check_mask(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        if allowed is None:
            return None
        n = len(self._vectors)
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.shape != (n,):
            raise ConfigError(f"allowed must be a boolean array of shape [{n}], not {mask.dtype} of {list(mask.shape)}")
        return None if mask.all() else mask


def _ordered(scores: NDArray[np.float32], positions: NDArray[np.int64]) -> Found:
    """Order equal scores by position, which FAISS does not guarantee."""
    tied = (scores[:, 1:] == scores[:, :-1]).any(axis=1)
    if tied.any():
        order = np.lexsort((positions[tied], -scores[tied]), axis=1)
        scores[tied] = np.take_along_axis(scores[tied], order, axis=1)
        positions[tied] = np.take_along_axis(positions[tied], order, axis=1)
    return scores, positions


def _padded(found: Found, k: int) -> Found:
    missing = k - found[0].shape[1]
    if missing == 0:
        return found
    return (
        np.pad(found[0], ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(found[1], ((0, 0), (0, missing)), constant_values=-1),
    )
