"""What all retrieval strategies share: filters, exclusion, batches, and the way from positions to hits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.pool import Pool
from ragalign.retrieval.batch import Batch, Near, Space
from ragalign.retrieval.filters import Filters
from ragalign.retrieval.options import number, whole
from ragalign.retrieval.ranking import Ranking
from ragalign.text import normalise
from ragalign.types import Hit


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What must not be retrieved for a query, so that an evaluation prompt is never its own demonstration.

    Attributes:
        ids: demonstrations that no query gets; ids that are not in the pool do no harm.
        same_text: exclude demonstrations whose normalised instruction (`ragalign.text.normalise`) equals the
            normalised query.
        near: exclude demonstrations whose vector has at least this cosine similarity to the query's, both encoded as
            documents by the index's encoder; None for no such bound.

    Raises:
        ConfigError: ``ids`` is a single text, or ``near`` is outside [-1, 1].
    """

    ids: frozenset[str] = frozenset()
    same_text: bool = True
    near: float | None = None

    def __post_init__(self) -> None:
        ids: object = self.ids
        if isinstance(ids, str):
            raise ConfigError(f"exclusion: ids must be a set of ids, not the single text {ids!r}")
        object.__setattr__(self, "ids", frozenset(self.ids))
        if self.near is not None:
            number("exclusion", "near", self.near, low=-1.0, high=1.0)


class Retriever(ABC):
    """Finds demonstrations for queries.

    A strategy implements `rank`. Strategies compose by calling one another's `rank` with the same `Batch`, so that
    filters and exclusion are resolved once and hold at every stage.

    Attributes:
        pool: the demonstrations that hits come from.
        name: what recipes call the strategy.
        no_match: the score that says "nothing in common with the query", where the strategy has one.
    """

    name: ClassVar[str] = "retriever"
    no_match: ClassVar[float | None] = None

    def __init__(self, pool: Pool, space: Space | None = None) -> None:
        """Set up what is shared.

        Args:
            pool: the demonstrations.
            space: their vectors and encoder, for `Exclusion.near`; an `Index` is one.
        """
        self.pool = pool
        self._space = space
        self._filters = Filters(pool)

    @property
    def space(self) -> Space | None:
        """The vectors of the pool and their encoder, where the strategy was given an index."""
        return self._space

    @abstractmethod
    def rank(self, batch: Batch, k: int) -> Ranking:
        """The best k positions for each query of the batch, fewer where not as many may be retrieved.

        Filters and exclusions of the batch are applied *before* the cut to k.
        """

    def retrieve(
        self,
        queries: Sequence[str],
        k: int,
        *,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Hits for each query, best first, at most k.

        Fewer than k come back only where the pool has no more that pass filter and exclusion.

        Args:
            queries: texts; equal ones are worked out once.
            k: most hits per query, at least 1.
            exclude: what must not be retrieved; None excludes nothing.
            where: metadata conditions, all of which must hold, such as ``{"category": "maths"}`` or
                ``{"source": ["a.jsonl", "b.jsonl"]}``; a list means one of its values (see `Filters.mask`).

        Raises:
            ConfigError: an argument is wrong, or ``exclude.near`` is asked of a retriever without an encoder.
        """
        if isinstance(queries, str):
            raise ConfigError("retrieve: queries must be a list of texts, not a single text; wrap it in a list")
        whole("retrieve", "k", k)
        if not len(queries):
            return []
        row_of = {text: row for row, text in enumerate(dict.fromkeys(queries))}
        hits = self.rank(self._resolve(list(row_of), exclude, where), k).hits(self._ids)
        if len(row_of) == len(queries):
            return hits
        return [list(hits[row_of[text]]) for text in queries]

    def _check_stage(self, stage: Retriever) -> None:
        """Refuse another retriever that this one cannot build on."""
        if not isinstance(stage, Retriever):
            raise ConfigError(f"{self.name}: expected a retriever, not {stage!r}; make_retriever also takes names")
        if stage.pool is not self.pool and stage.pool.fingerprint != self.pool.fingerprint:
            raise ConfigError(f"{self.name}: the retriever {stage.name!r} under it is over another pool")

    def _resolve(self, texts: list[str], exclude: Exclusion | None, where: Mapping[str, Any] | None) -> Batch:
        allowed = self._filters.mask(where) if where else None
        if exclude is None:
            return Batch(texts, len(self.pool), allowed=allowed)
        if exclude.ids:
            inside = ~np.isin(self._ids, list(exclude.ids))
            allowed = inside if allowed is None else allowed & inside
        forbidden: dict[int, NDArray[np.int64]] = {}
        if exclude.same_text:
            normalised = ((row, self._positions_by_text.get(normalise(text))) for row, text in enumerate(texts))
            forbidden = {row: positions for row, positions in normalised if positions is not None}
        near = None
        if exclude.near is not None:
            if self._space is None:
                raise ConfigError("exclusion: near needs an encoder, and this retriever has no index; leave near out")
            near = Near(exclude.near, self._space)
        return Batch(texts, len(self.pool), allowed=allowed, forbidden=forbidden, near=near)

    @cached_property
    def _ids(self) -> NDArray[np.object_]:
        return np.array(self.pool.ids, dtype=object)

    @cached_property
    def _positions_by_text(self) -> dict[str, NDArray[np.int64]]:
        positions: dict[str, list[int]] = {}
        for position, instruction in enumerate(self.pool.instructions):
            positions.setdefault(normalise(instruction), []).append(position)
        return {text: np.array(found, dtype=np.int64) for text, found in positions.items()}
