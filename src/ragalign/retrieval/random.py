"""Random retrieval: the baseline for all other strategies."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.options import whole
from ragalign.retrieval.ranking import Ranking, top


class RandomRetriever(Retriever):
    """Demonstrations drawn uniformly, without replacement.

    The draw depends only on the seed, the query's text and the pool, not on the other queries of the batch. A filter
    removes demonstrations from the draw without reordering the others.

    `Hit.score` is the demonstration's random number in [0, 1) for this query.
    """

    name: ClassVar[str] = "random"

    def __init__(self, index: Index, *, seed: int = 0) -> None:
        """Set up the draw.

        Args:
            index: where the demonstrations are.
            seed: of the draw, 0 or more; the same seed and query draw the same demonstrations.
        """
        super().__init__(index.pool, index)
        self._seed = whole("random", "seed", seed, low=0)

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""

        def draw(rows: NDArray[np.int64], depth: int) -> Ranking:
            out = Ranking.empty(len(rows), depth)
            for i, row in enumerate(rows):
                keys = self._keys(batch.texts[row])
                positions = top(keys, depth, batch.allowed)
                out.scores[i] = keys[positions]
                out.positions[i] = positions
            return out

        return batch.survivors(k, draw)

    def _keys(self, text: str) -> NDArray[np.float64]:
        """One number in [0, 1) per demonstration, float64 [n]."""
        digest = hashlib.sha256(b"%d:%b" % (self._seed, text.encode("utf-8", "surrogatepass"))).digest()
        # The raw stream of a bit generator is stable across NumPy versions; `Generator` methods are not.
        raw = np.random.PCG64(int.from_bytes(digest)).random_raw(len(self.pool))
        return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
