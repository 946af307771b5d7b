"""Maximal marginal relevance: relevant to the query, and different from those already selected."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.greedy import GreedyRetriever
from ragalign.retrieval.options import number


class MmrRetriever(GreedyRetriever):
    """Maximal marginal relevance over the candidates of a first stage.

    Selects, one at a time, the candidate with the highest ``lambda * relevance - (1 - lambda) * similarity``, where
    similarity is the maximum over the demonstrations selected so far, 0 for the first. Both are cosines.

    `Hit.score` is this value at the time of selection.

    Source: Carbonell and Goldstein (1998), "The Use of MMR, Diversity-Based Reranking for Reordering Documents and
    Producing Summaries", SIGIR.
    """

    name: ClassVar[str] = "mmr"

    def __init__(
        self, index: Index, *, lambda_: float = 0.7, first: Retriever | None = None, n_candidates: int = 100
    ) -> None:
        """Set the trade-off.

        Args:
            index: the index to search.
            lambda_: weight of relevance, in [0, 1]; 1 orders by relevance alone. ``lambda`` in recipes.
            first: the retriever of the candidates; dense by default.
            n_candidates: number of candidates; raised to k if lower.
        """
        super().__init__(index, first=first, n_candidates=n_candidates)
        self._lambda = number("mmr", "lambda", lambda_, low=0, high=1)

    def select(
        self,
        relevance: NDArray[np.float64],
        similarity: NDArray[np.float64],
        available: NDArray[np.bool_],
        k: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See `GreedyRetriever.select`."""
        m = len(relevance)
        rows = np.arange(m)
        scores = np.empty((m, k))
        columns = np.empty((m, k), dtype=np.int64)
        left = available.copy()
        closest = np.zeros_like(relevance)
        for step in range(k):
            value = np.where(left, self._lambda * relevance - (1 - self._lambda) * closest, -np.inf)
            best = value.argmax(axis=1)
            scores[:, step] = value[rows, best]
            columns[:, step] = best
            left[rows, best] = False
            closest = similarity[rows, best] if step == 0 else np.maximum(closest, similarity[rows, best])
        return scores, columns
