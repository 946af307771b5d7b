"""The base class of retrievers: filters, exclusion, batches, and the conversion of positions to hits."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.pool import Pool
from ragalign.pool.stored import Demonstrations
from ragalign.pool.wrappers import question_key
from ragalign.retrieval.batch import Near, QueryBatch, Space
from ragalign.retrieval.filters import Filters
from ragalign.retrieval.options import number, whole
from ragalign.retrieval.ranking import Ranking
from ragalign.types import Hit, Query

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Demonstrations that must not be retrieved, so that an evaluation prompt is never its own demonstration.

    Attributes:
        ids: ids of demonstrations to exclude for all queries; ids that are not in the pool are ignored.
        same_text: exclude demonstrations whose instruction is the query's text, or for a `Query` any of its
            `own_texts`, both normalised (`ragalign.text.normalise`) and extracted from known prompt templates.
        near: exclude demonstrations with at least this cosine similarity to the query, both encoded as documents by
            the index's encoder; None for no limit.

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


class SupportsRetrieve(Protocol):
    """A retriever as an `ragalign.Aligner` needs it: a `Retriever`, or a `DiskRetriever`."""

    name: ClassVar[str]

    @property
    def pool(self) -> Demonstrations:
        """The demonstrations to retrieve."""

    @property
    def space(self) -> Space | None:
        """The vectors of the pool and their encoder."""

    def retrieve(
        self,
        queries: Sequence[str | Query],
        k: int,
        *,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """See `Retriever.retrieve`."""

    def check_where(self, where: Mapping[str, Any]) -> None:
        """See `Retriever.check_where`."""


class Retriever(ABC):
    """Finds demonstrations for queries.

    A strategy implements `rank`. Strategies are combined by calling each other's `rank` with the same `QueryBatch`, so
    that filters and exclusions are resolved once and apply at every stage.

    Attributes:
        pool: the demonstrations to retrieve.
        name: the strategy's name in recipes.
        reason_for_no_hit: the usual reason for queries without hits, for messages.
    """

    name: ClassVar[str] = "retriever"
    reason_for_no_hit: str = "no demonstration passes the filter and the exclusion"

    def __init__(self, pool: Pool, space: Space | None = None) -> None:
        """Set the pool and its vectors.

        Args:
            pool: the demonstrations.
            space: their vectors and encoder, for `Exclusion.near`, such as an `Index`.
        """
        self.pool = pool
        self._space = space
        self._filters = Filters(pool)

    @property
    def space(self) -> Space | None:
        """The vectors of the pool and their encoder; None if the strategy has no index."""
        return self._space

    @abstractmethod
    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """Rank positions for each query of the batch: the best k, or fewer if fewer are allowed.

        Filters and exclusions of the batch are applied *before* the cut to k.
        """

    def retrieve(
        self,
        queries: Sequence[str | Query],
        k: int,
        *,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Retrieve at most k hits for each query, best first.

        Fewer than k are returned only if no more pass the filter and the exclusion and, for `bm25`, share a word with
        the query. The number of queries without hits is logged in one warning.

        Args:
            queries: texts or queries; equal ones are processed once.
            k: maximum hits per query, at least 1.
            exclude: demonstrations not to retrieve; None excludes nothing.
            where: metadata conditions, all of which must hold, such as ``{"category": "maths"}`` or
                ``{"source": ["a.jsonl", "b.jsonl"]}``; a list matches any of its values (see `Filters.mask`).

        Raises:
            ConfigError: an argument is invalid, or ``exclude.near`` is set and the retriever has no encoder.
        """
        if isinstance(queries, str):
            raise ConfigError("retrieve: queries must be a list of texts, not a single text; wrap it in a list")
        whole("retrieve", "k", k)
        if not len(queries):
            return []
        asked = [own_texts(query) for query in queries]
        row_of = {texts: row for row, texts in enumerate(dict.fromkeys(asked))}
        hits = self.rank(self._resolve(list(row_of), exclude, where), k).hits(self._ids)
        found = hits if len(row_of) == len(queries) else [list(hits[row_of[texts]]) for texts in asked]
        if n_without := sum(not each for each in found):
            _log.warning(
                "%s: %d of %d questions have no hit: %s", self.name, n_without, len(found), self.reason_for_no_hit
            )
        return found

    def check_where(self, where: Mapping[str, Any]) -> None:
        """Check the conditions of `retrieve` before anything slow starts.

        Raises:
            ConfigError: no demonstration has such a field, or a value is not a JSON value.
        """
        if where:
            self._filters.mask(where)

    def _check_stage(self, stage: Retriever) -> None:
        """Reject another retriever that this one cannot combine with."""
        if not isinstance(stage, Retriever):
            raise ConfigError(f"{self.name}: expected a retriever, not {stage!r}; make_retriever also takes names")
        if stage.pool is not self.pool and stage.pool.fingerprint != self.pool.fingerprint:
            raise ConfigError(f"{self.name}: its stage {stage.name!r} uses another pool")

    def _resolve(
        self, asked: list[tuple[str, ...]], exclude: Exclusion | None, where: Mapping[str, Any] | None
    ) -> QueryBatch:
        texts = [own[0] for own in asked]
        allowed = self._filters.mask(where) if where else None
        if exclude is None:
            return QueryBatch(texts, len(self.pool), allowed=allowed)
        if exclude.ids:
            inside = ~np.isin(self._ids, list(exclude.ids))
            allowed = inside if allowed is None else allowed & inside
        forbidden: dict[int, NDArray[np.int64]] = {}
        if exclude.same_text:
            same = ((row, self._positions_of(own)) for row, own in enumerate(asked))
            forbidden = {row: positions for row, positions in same if len(positions)}
        near = None
        if exclude.near is not None:
            if self._space is None:
                raise ConfigError("exclusion: near needs an encoder, but this retriever has no index; remove near")
            near = Near(exclude.near, self._space)
        return QueryBatch(texts, len(self.pool), allowed=allowed, forbidden=forbidden, near=near)

    @cached_property
    def _ids(self) -> NDArray[np.object_]:
        return np.array(self.pool.ids, dtype=object)

    def _positions_of(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Positions of the demonstrations whose instruction is one of these texts."""
        keys = dict.fromkeys(map(question_key, texts))
        found = [self._positions_by_text[key] for key in keys if key in self._positions_by_text]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    @cached_property
    def _positions_by_text(self) -> dict[str, NDArray[np.int64]]:
        positions: dict[str, list[int]] = {}
        for position, instruction in enumerate(self.pool.instructions):
            positions.setdefault(question_key(instruction), []).append(position)
        return {text: np.array(found, dtype=np.int64) for text, found in positions.items()}


def own_texts(query: object) -> tuple[str, ...]:
    """The texts that are the query's own, the first of which is retrieved for.

    Raises:
        ConfigError: it is neither text nor a query.
    """
    if isinstance(query, Query):
        return query.own_texts
    if isinstance(query, str):
        return (query,)
    raise ConfigError(f"retrieve: a query must be text or a Query, not {type(query).__name__}")
