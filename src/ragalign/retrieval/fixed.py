"""Fixed demonstrations: the same for every query, as in URIAL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.ranking import Ranking
from ragalign.types import Demonstration


class FixedRetriever(Retriever):
    """The same demonstrations for every query, in the given order.

    Filters and exclusions apply here too; the remaining demonstrations move up. With ids, `pool` is the index's pool;
    otherwise it is the given demonstrations, which need not be in an index.

    `Hit.score` is always 0.
    """

    name: ClassVar[str] = "fixed"

    def __init__(
        self,
        index: Index | None = None,
        *,
        ids: Iterable[str] | None = None,
        demonstrations: Iterable[Demonstration | Mapping[str, Any]] | None = None,
    ) -> None:
        """Set the demonstrations by exactly one of the two options.

        Args:
            index: the index of the ids; its encoder measures `Exclusion.near`. Optional with ``demonstrations``.
            ids: demonstration ids in the index's pool.
            demonstrations: demonstrations, such as a `Pool`, or mappings with ``instruction`` and ``response``.

        Raises:
            ConfigError: both or neither are given, or a mapping has other fields.
            DataError: an id is not in the pool.
        """
        if (ids is None) == (demonstrations is None):
            raise ConfigError("fixed: set either ids or demonstrations")
        if demonstrations is not None:
            pool = demonstrations if isinstance(demonstrations, Pool) else _pool(demonstrations)
            super().__init__(pool, _Constants(pool, index.encoder) if index is not None else None)
            self._order = np.arange(len(pool))
        elif index is None or isinstance(ids, str):
            raise ConfigError("fixed: ids must be a list of demonstration ids in an index")
        else:
            super().__init__(index.pool, index)
            self._order = np.array([index.pool.position(name) for name in dict.fromkeys(ids or ())], dtype=np.int64)

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""
        order = self._order if batch.allowed is None else self._order[batch.allowed[self._order]]

        def repeat(rows: NDArray[np.int64], depth: int) -> Ranking:
            out = Ranking.empty(len(rows), depth)
            out.positions[:, : len(order)] = order[:depth]
            out.scores[:, : len(order)] = 0.0
            return out

        return batch.survivors(k, repeat)


class _Constants:
    """The vectors of demonstrations outside an index, encoded on first use."""

    def __init__(self, pool: Pool, encoder: Encoder) -> None:
        self._pool = pool
        self.encoder = encoder

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        return self.encoder.encode(self._pool.instructions)


def _pool(demonstrations: Iterable[Demonstration | Mapping[str, Any]]) -> Pool:
    return Pool.from_demonstrations([_demonstration(given) for given in demonstrations])


def _demonstration(given: Demonstration | Mapping[str, Any]) -> Demonstration:
    if isinstance(given, Demonstration):
        return given
    if not isinstance(given, Mapping) or not all(
        isinstance(given.get(name), str) for name in ("instruction", "response")
    ):
        raise ConfigError("fixed: each demonstration must have an instruction and a response, both texts")
    unknown = sorted(set(given) - {"instruction", "response"})
    if unknown:
        raise ConfigError(f"fixed: demonstrations can have an instruction and a response, not: {', '.join(unknown)}")
    return Demonstration(given["instruction"], given["response"])
