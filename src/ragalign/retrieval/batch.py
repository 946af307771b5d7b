"""A batch of queries with its filters and exclusions resolved to pool positions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.retrieval.ranking import Ranking

_log = logging.getLogger(__name__)

# A ranking of the given rows of the batch down to a depth, with `Batch.allowed` already applied.
Rank = Callable[[NDArray[np.int64], int], Ranking]

# Most bytes of temporary vectors or similarities; strategies work through larger batches in parts.
CHUNK_BYTES = 64 * 2**20

# What float32 may lose in a cosine: a copy of the query is near at any threshold.
_ROUNDING = 1e-6
_GROWTH = 4
_SLACK = 16


class Space(Protocol):
    """Vectors of a pool's demonstrations and the encoder that made them; an `Index` is one."""

    @property
    def encoder(self) -> Encoder:
        """The encoder of the vectors."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors in pool order, float32 [n, d]."""


@dataclass(frozen=True, slots=True)
class Near:
    """Excludes demonstrations with at least this cosine similarity to the query, measured in ``space``."""

    threshold: float
    space: Space


class Batch:
    """Distinct queries and what may be retrieved for them.

    What all queries share is a mask over the pool. What each query has for itself, the demonstrations with its own
    text or close to it, is removed from rankings by `survivors`.

    Attributes:
        texts: the queries, each once.
        allowed: bool [n], which demonstrations any query may get; None for all of them.
        n_allowed: how many these are.
    """

    def __init__(
        self,
        texts: Sequence[str],
        n: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        forbidden: Mapping[int, NDArray[np.int64]] | None = None,
        near: Near | None = None,
    ) -> None:
        """Resolve a batch.

        Args:
            texts: the queries, each once.
            n: size of the pool.
            allowed: bool [n], None for all.
            forbidden: positions that single rows must not get, by row.
            near: what counts as too close to a query, None for nothing.
        """
        self.texts = tuple(texts)
        self.allowed = allowed
        self.n_allowed = n if allowed is None else int(np.count_nonzero(allowed))
        self._n = n
        self._near = near
        self._n_forbidden = np.zeros(len(self.texts), dtype=np.int64)
        codes = [np.empty(0, dtype=np.int64)]
        for row, positions in (forbidden or {}).items():
            self._n_forbidden[row] = len(positions)
            codes.append(row * n + positions)
        # (row, position) pairs as single numbers, so that membership is one vectorised test.
        self._forbidden = np.concatenate(codes)
        self._encoded: dict[tuple[int, str], NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def vectors(self, encoder: Encoder, kind: Literal["query", "document"] = "query") -> NDArray[np.float32]:
        """The queries' vectors, float32 [m, d], encoded once however many strategies ask."""
        if encoder.query_prompt == encoder.document_prompt:
            kind = "query"
        key = (id(encoder), kind)
        if key not in self._encoded:
            self._encoded[key] = encoder.encode(self.texts, kind=kind)
            # The same texts are as long whichever prompt is before them: one warning is enough.
            if len(self._encoded) == 1 and (n_truncated := int(encoder.truncated(self.texts, kind=kind).sum())):
                _log.warning(
                    "%d of %d questions are longer than the %s tokens of the encoder %s: what comes after has no part "
                    "in the search",
                    n_truncated,
                    len(self.texts),
                    encoder.max_tokens,
                    encoder.id,
                )
        return self._encoded[key]

    def survivors(self, k: int, rank: Rank) -> Ranking:
        """The best k of each query's ranking that are not excluded for it.

        Ranks a little deeper than k, drops what is excluded, and ranks deeper for the queries that fell short, until
        they have k or their ranking ends. ``rank`` must be consistent: deeper means more at the end.
        """
        k = min(k, self.n_allowed)
        rows = np.arange(len(self))
        if k == 0 or (self._near is None and not len(self._forbidden)):
            return rank(rows, k)
        out = Ranking.empty(len(self), k)
        # One query with many copies in the pool must not make all others rank deep: first a little, then what is known
        # to be enough, or with near-duplicates, of which the number is not known, always several times as deep.
        depth = k + min(self._most_forbidden(rows), _SLACK) + (_SLACK if self._near else 0)
        while len(rows):
            depth = min(depth, self.n_allowed)
            short = [self._fill(out, chunk, rank, depth) for chunk in self._chunks(rows, depth)]
            rows = np.concatenate(short)
            if len(rows):
                depth = depth * _GROWTH if self._near else k + self._most_forbidden(rows)
        return out

    def _most_forbidden(self, rows: NDArray[np.int64]) -> int:
        return int(self._n_forbidden[rows].max())

    def _chunks(self, rows: NDArray[np.int64], depth: int) -> list[NDArray[np.int64]]:
        """The rows in groups for which one group's vectors or scores stay within the memory bound."""
        width = self._near.space.vectors.shape[1] if self._near else 1
        size = max(1, CHUNK_BYTES // (depth * max(width * 4, 16)))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _fill(self, out: Ranking, rows: NDArray[np.int64], rank: Rank, depth: int) -> NDArray[np.int64]:
        """Write the rows that have their k at this depth, or whose ranking ends; return the others."""
        k = out.positions.shape[1]
        found = rank(rows, depth)
        keep = self._keep(rows, found.positions)
        ended = found.positions[:, -1] < 0 if depth < self.n_allowed else np.ones(len(rows), dtype=np.bool_)
        done = (keep.sum(axis=1) >= k) | ended
        order = np.argsort(~keep[done], axis=1, kind="stable")[:, :k]
        kept = np.take_along_axis(keep[done], order, axis=1)
        scores = np.take_along_axis(found.scores[done], order, axis=1)
        positions = np.take_along_axis(found.positions[done], order, axis=1)
        out.scores[rows[done]] = np.where(kept, scores, -np.inf)
        out.positions[rows[done]] = np.where(kept, positions, -1)
        short: NDArray[np.int64] = rows[~done]
        return short

    def _keep(self, rows: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.bool_]:
        keep = positions >= 0
        if len(self._forbidden):
            keep &= ~np.isin(rows[:, None] * self._n + positions, self._forbidden)
        if self._near:
            # Near-duplicates are documents to each other: the query is encoded as one, which matters for encoders with
            # different prompts on the two sides.
            queries = unit(self.vectors(self._near.space.encoder, "document")[rows])
            documents = unit(self._near.space.vectors[np.maximum(positions, 0)])
            keep &= np.matmul(documents, queries[:, :, None])[:, :, 0] < self._near.threshold - _ROUNDING
        return keep


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors scaled to length 1 along the last axis; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return scaled
