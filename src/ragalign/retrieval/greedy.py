"""Greedy selection from candidates, the base of MMR and DPP."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import CHUNK_BYTES, QueryBatch, unit
from ragalign.retrieval.dense import DenseRetriever
from ragalign.retrieval.options import whole
from ragalign.retrieval.ranking import Ranking


class GreedyRetriever(Retriever):
    """Selects k of the candidates of a first stage, one at a time.

    Relevance and similarity are cosines of the index's vectors, independent of its metric, so that both are on the
    same scale. Filters and exclusions apply to the candidates. Ties go to the candidate ranked higher by the first
    stage.
    """

    def __init__(self, index: Index, *, first: Retriever | None = None, n_candidates: int = 100) -> None:
        """Set the first stage.

        Args:
            index: the index to search.
            first: the retriever of the candidates; dense by default.
            n_candidates: number of candidates; raised to k if lower.
        """
        super().__init__(index.pool, index)
        self._index = index
        self._first = first if first is not None else DenseRetriever(index)
        self._check_stage(self._first)
        self._n_candidates = whole(self.name, "n_candidates", n_candidates)

    @abstractmethod
    def select(
        self,
        relevance: NDArray[np.float64],
        similarity: NDArray[np.float64],
        available: NDArray[np.bool_],
        k: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Select k of c candidates for each of m queries.

        Args:
            relevance: cosine of query and candidate, float64 [m, c].
            similarity: cosine of candidate and candidate, float64 [m, c, c].
            available: bool [m, c], False for padding, which is in the last columns.
            k: number to select, at most c.

        Returns:
            Scores float64 [m, k] and columns int64 [m, k] in order of selection; for queries with fewer than k
            candidates, the last scores are -inf.
        """

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""
        candidates = self._first.rank(batch, max(k, self._n_candidates)).positions
        k = min(k, candidates.shape[1])
        out = Ranking.empty(len(batch), k)
        if not k:
            return out
        queries = unit(batch.vectors(self._index.encoder).astype(np.float64))
        c, d = candidates.shape[1], queries.shape[1]
        size = max(1, CHUNK_BYTES // (8 * (c * d + c * c)))
        for start in range(0, len(batch), size):
            rows = slice(start, start + size)
            positions = candidates[rows]
            vectors = unit(self._index.vectors[np.maximum(positions, 0)].astype(np.float64))
            relevance = np.matmul(vectors, queries[rows, :, None])[:, :, 0]
            similarity = np.matmul(vectors, vectors.transpose(0, 2, 1))
            scores, columns = self.select(relevance, similarity, positions >= 0, k)
            out.scores[rows] = scores
            out.positions[rows] = np.where(np.isneginf(scores), -1, np.take_along_axis(positions, columns, axis=1))
        return out
