"""Dense retrieval from an index on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.indexes.on_disk import CANDIDATES, PROBES, DiskIndex
from ragalign.pool.stored import StoredPool
from ragalign.pool.wrappers import question_key
from ragalign.retrieval.base import Exclusion, own_texts
from ragalign.retrieval.batch import QueryBatch, is_near, unit
from ragalign.retrieval.options import whole
from ragalign.types import Demonstration, Hit, Query

SLACK = 16
"""Hits beyond k that the first search looks for, since some can be repetitions or excluded."""
# How many times as deep each further search is.
_GROWTH = 4

_log = logging.getLogger(__name__)


class DiskRetriever:
    """Nearest demonstrations of an index on disk; as `DenseRetriever`, but approximate and without filters.

    Args:
        index: the index.
        probes: inverted lists to scan for each question; more find more.
        candidates: for each hit, how many vectors to compare exactly.

    Raises:
        ConfigError: ``probes`` or ``candidates`` is below 1.
    """

    name: ClassVar[str] = "dense"
    reason_for_no_hit: ClassVar[str] = "no demonstration passes the exclusion"

    def __init__(self, index: DiskIndex, *, probes: int = PROBES, candidates: int = CANDIDATES) -> None:
        self._index = index
        self._probes, self._candidates = whole("dense", "probes", probes), whole("dense", "candidates", candidates)

    @property
    def pool(self) -> StoredPool:
        """The demonstrations to retrieve."""
        return self._index.pool

    @property
    def space(self) -> DiskIndex:
        """The vectors and their encoder."""
        return self._index

    def check_where(self, where: Mapping[str, Any]) -> None:
        """See `ragalign.retrieval.Retriever.check_where`.

        Raises:
            ConfigError: there are conditions.
        """
        if where:
            raise ConfigError("an index on disk has no filters: remove `where`, or build an index without --on-disk")

    def retrieve(
        self,
        queries: Sequence[str | Query],
        k: int,
        *,
        exclude: Exclusion | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Hit]]:
        """Retrieve at most k hits for each query, best first; see `ragalign.retrieval.Retriever.retrieve`.

        Raises:
            ConfigError: an argument is invalid, or conditions on metadata are given.
        """
        if isinstance(queries, str):
            raise ConfigError("retrieve: queries must be a list of texts, not a single text; wrap it in a list")
        whole("retrieve", "k", k)
        self.check_where(where or {})
        if not len(queries):
            return []
        asked = [own_texts(query) for query in queries]
        batch = QueryBatch([own[0] for own in dict.fromkeys(asked)], len(self._index))
        vectors = batch.vectors(self._index.encoder)
        near = None
        if exclude is not None and exclude.near is not None:
            near = unit(batch.vectors(self._index.encoder, "document"))
        rows = {}
        for row, own in enumerate(dict.fromkeys(asked)):
            unwanted = ExclusionCheck(own, exclude, None if near is None else near[row])
            rows[own] = self._best(vectors[row], k, unwanted)
        found = [list(rows[own]) for own in asked]
        if n_without := sum(not each for each in found):
            _log.warning(
                "%s: %d of %d questions have no hit: %s", self.name, n_without, len(found), self.reason_for_no_hit
            )
        return found

    def _best(self, vector: NDArray[np.float32], k: int, unwanted: ExclusionCheck) -> list[Hit]:
        """The best hits of one query: repetitions and what is excluded are skipped as they are met."""
        n = len(self._index)
        depth = min(n, k + SLACK)
        while True:
            [scores], [positions] = self._index.search(
                vector[None], depth, probes=self._probes, candidates=self._candidates
            )
            hits: dict[str, Hit] = {}
            n_found = int((positions >= 0).sum())
            for score, position in zip(scores[:n_found].tolist(), positions[:n_found].tolist(), strict=True):
                if len(hits) == k:
                    break
                demonstration = self.pool[position]
                if demonstration.id not in hits and not unwanted.has(demonstration, self._index.vectors[position]):
                    hits[demonstration.id] = Hit(demonstration.id, score, len(hits) + 1)
            if len(hits) == k or n_found < depth or depth == n:
                return list(hits.values())
            depth = min(n, depth * _GROWTH)


class ExclusionCheck:
    """The demonstrations that must not be retrieved for one query.

    Args:
        own: the query's own texts.
        exclude: see `Exclusion`.
        near: the query's vector as a document, of length 1, float32 [d]; None if `exclude` has no ``near``.
    """

    def __init__(self, own: Sequence[str], exclude: Exclusion | None, near: NDArray[np.float32] | None) -> None:
        self._exclude = exclude
        self._keys = {question_key(text) for text in own} if exclude is not None and exclude.same_text else set()
        self._near = near

    def has(self, demonstration: Demonstration, vector: NDArray[np.float32]) -> bool:
        """Whether a demonstration with this vector is excluded."""
        if self._exclude is None:
            return False
        if demonstration.id in self._exclude.ids:
            return True
        if self._keys and question_key(demonstration.instruction) in self._keys:
            return True
        threshold = self._exclude.near
        return threshold is not None and self._near is not None and bool(is_near(unit(vector) @ self._near, threshold))
