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

# Ranks the given rows of the batch to a given depth, with `QueryBatch.allowed` already applied.
Rank = Callable[[NDArray[np.int64], int], Ranking]

# Maximum bytes of temporary vectors or similarities; strategies process larger batches in parts.
CHUNK_BYTES = 64 * 2**20

# Tolerance for float32 rounding in a cosine, so that a copy of the query is near at any threshold.
_ROUNDING = 1e-6
_GROWTH = 4
_SLACK = 16


class Space(Protocol):
    """The vectors of a pool and their encoder, such as an `Index`."""

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors in pool order, float32 [n, d]."""


@dataclass(frozen=True, slots=True)
class Near:
    """Excludes demonstrations with at least this cosine similarity to the query, measured in ``space``."""

    threshold: float
    space: Space


class QueryBatch:
    """Distinct queries, and the demonstrations allowed for each.

    Restrictions for all queries are a mask over the pool. Restrictions of a single query (demonstrations with its own
    text or similar to it) are applied to rankings by `survivors`.

    Attributes:
        texts: the queries, each once.
        allowed: bool [n], the demonstrations allowed for all queries; None for the whole pool.
        n_allowed: number of allowed demonstrations.
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
            forbidden: forbidden positions of single queries, by row.
            near: the similarity limit; None for no limit.
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
        # (row, position) pairs encoded as single numbers, so that membership is a vectorised test.
        self._forbidden = np.concatenate(codes)
        self._encoded: dict[tuple[int, str], NDArray[np.float32]] = {}

    def __len__(self) -> int:
        return len(self.texts)

    def vectors(self, encoder: Encoder, kind: Literal["query", "document"] = "query") -> NDArray[np.float32]:
        """The queries' vectors, float32 [m, d], encoded once for all strategies."""
        if encoder.query_prompt == encoder.document_prompt:
            kind = "query"
        key = (id(encoder), kind)
        if key not in self._encoded:
            self._encoded[key] = encoder.encode(self.texts, kind=kind)
            # Both prompts make the same texts too long, so warn once.
            if len(self._encoded) == 1 and (n_truncated := int(encoder.truncated(self.texts, kind=kind).sum())):
                _log.warning(
                    "%d of %d questions are longer than the %s tokens of the encoder %s: their ends are ignored in the "
                    "search",
                    n_truncated,
                    len(self.texts),
                    encoder.max_tokens,
                    encoder.id,
                )
        return self._encoded[key]

    def survivors(self, k: int, rank: Rank) -> Ranking:
        """The best k positions of each query's ranking that are not forbidden for this query.

        Ranks a little deeper than k, drops forbidden positions, and ranks deeper for queries with fewer than k left,
        until they have k or their ranking ends. ``rank`` must be consistent: a deeper ranking extends a shallower one.
        """
        k = min(k, self.n_allowed)
        rows = np.arange(len(self))
        if k == 0 or (self._near is None and not len(self._forbidden)):
            return rank(rows, k)
        out = Ranking.empty(len(self), k)
        # A query with many copies in the pool must not make all others rank deep. So rank a little deeper first, then
        # as deep as is known to be enough or, with near-duplicates, whose number is unknown, several times as deep
        # each time.
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
        """Split the rows into groups whose vectors and scores stay within the memory limit."""
        width = self._near.space.vectors.shape[1] if self._near else 1
        size = max(1, CHUNK_BYTES // (depth * max(width * 4, 16)))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _fill(self, out: Ranking, rows: NDArray[np.int64], rank: Rank, depth: int) -> NDArray[np.int64]:
        """Fill the rows that have k positions at this depth, or whose ranking ends; return the other rows."""
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
            # Near-duplicates are compared as documents, so the query is encoded as a document. This matters for
            # encoders with different prompts for queries and documents.
            queries = unit(self.vectors(self._near.space.encoder, "document")[rows])
            documents = unit(self._near.space.vectors[np.maximum(positions, 0)])
            keep &= ~is_near(np.matmul(documents, queries[:, :, None])[:, :, 0], self._near.threshold)
        return keep


def is_near(cosines: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """Which cosines reach the threshold, up to rounding."""
    return np.asarray(cosines >= threshold - _ROUNDING)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale vectors to length 1 along the last axis; zero vectors stay zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return scaled
