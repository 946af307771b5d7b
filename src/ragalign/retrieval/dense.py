"""Dense retrieval: nearest vectors of the index."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.ranking import Ranking


class DenseRetriever(Retriever):
    """Nearest demonstrations in the metric of the index.

    `Hit.score` is the index's score: cosine similarity, inner product, or negative squared distance for l2.
    """

    name: ClassVar[str] = "dense"

    def __init__(self, index: Index) -> None:
        super().__init__(index.pool, index)
        self._index = index

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""
        if not batch.n_allowed:
            return Ranking.empty(len(batch), 0)
        vectors = batch.vectors(self._index.encoder)

        def search(rows: NDArray[np.int64], depth: int) -> Ranking:
            return Ranking(*self._index.search(vectors[rows], depth, allowed=batch.allowed))

        return batch.survivors(k, search)
