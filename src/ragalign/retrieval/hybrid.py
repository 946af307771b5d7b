"""Hybrid retrieval: reciprocal rank fusion of several retrievers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.bm25 import Bm25Retriever
from ragalign.retrieval.dense import DenseRetriever
from ragalign.retrieval.options import number, whole
from ragalign.retrieval.ranking import Ranking


class HybridRetriever(Retriever):
    """Reciprocal rank fusion: the sum of 1 / (constant + rank) over the rankings that contain a demonstration.

    Each retriever ranks ``n_candidates``, with filters and exclusions applied; the fused list is then cut to k.
    Equal sums are ordered by position in the pool.

    `Hit.score` is this sum, at most ``len(retrievers) / (constant + 1)``.

    Source: Cormack, Clarke and Buettcher (2009), "Reciprocal Rank Fusion outperforms Condorcet and individual Rank
    Learning Methods", SIGIR, also for the constant 60.
    """

    name: ClassVar[str] = "hybrid"

    def __init__(
        self,
        index: Index,
        *,
        retrievers: Sequence[Retriever] | None = None,
        constant: float = 60,
        n_candidates: int = 100,
    ) -> None:
        """Set the retrievers to fuse.

        Args:
            index: the index to search.
            retrievers: the retrievers to fuse; dense and bm25 by default.
            constant: larger values reduce the weight of the first ranks.
            n_candidates: depth of each ranking; raised to k if lower.
        """
        super().__init__(index.pool, index)
        self._retrievers = list(retrievers) if retrievers is not None else [DenseRetriever(index), Bm25Retriever(index)]
        if not self._retrievers:
            raise ConfigError("hybrid: retrievers must name at least one retriever")
        for retriever in self._retrievers:
            self._check_stage(retriever)
        self._constant = number("hybrid", "constant", constant, low=0)
        self._n_candidates = whole("hybrid", "n_candidates", n_candidates)

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""
        k = min(k, batch.n_allowed)
        n = len(self.pool)
        codes, shares = [], []
        for retriever in self._retrievers:
            found = retriever.rank(batch, max(k, self._n_candidates))
            share = np.broadcast_to(
                1 / (self._constant + np.arange(1, found.positions.shape[1] + 1)), found.scores.shape
            )
            here = found.positions >= 0
            # (row, position) pairs encoded as single numbers, so that all queries are fused in one pass.
            codes.append((np.arange(len(batch))[:, None] * n + found.positions)[here])
            shares.append(share[here])
        distinct, where = np.unique(np.concatenate(codes), return_inverse=True)
        sums = np.bincount(where, weights=np.concatenate(shares), minlength=len(distinct))
        row, position = np.divmod(distinct, max(n, 1))
        order = np.lexsort((position, -sums, row))
        row, position, sums = row[order], position[order], sums[order]
        column = np.arange(len(row)) - np.searchsorted(row, row)
        first = column < k
        out = Ranking.empty(len(batch), k)
        out.scores[row[first], column[first]] = sums[first]
        out.positions[row[first], column[first]] = position[first]
        return out
