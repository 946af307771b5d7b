"""Rankings as arrays of positions, which strategies exchange before ids are looked up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.types import Hit


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best pool positions of m queries, best first.

    Attributes:
        scores: floats [m, k], higher is better; -inf if there is no position.
        positions: int64 [m, k], each at most once per row; -1 after the last position of a row.
    """

    scores: NDArray[np.floating[Any]]
    positions: NDArray[np.int64]

    @staticmethod
    def empty(m: int, k: int) -> Ranking:
        """A ranking without positions, to be filled in."""
        return Ranking(np.full((m, k), -np.inf), np.full((m, k), -1, dtype=np.int64))

    def hits(self, ids: NDArray[np.object_]) -> list[list[Hit]]:
        """Convert the rows to hits; ``ids`` [n] are the demonstration ids by position."""
        names = ids[np.maximum(self.positions, 0)].tolist()
        counts = (self.positions >= 0).sum(axis=1).tolist()
        ranks = range(1, self.positions.shape[1] + 1)
        rows = zip(names, self.scores.tolist(), counts, strict=True)
        return [list(map(Hit, name[:count], score[:count], ranks)) for name, score, count in rows]


def top(scores: NDArray[np.floating[Any]], k: int, allowed: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """Positions of the k highest ``scores`` [n], ordered by score and then by position.

    Returns fewer than k if fewer are ``allowed`` [n].
    """
    positions = np.arange(len(scores)) if allowed is None else np.flatnonzero(allowed)
    if k < len(positions):
        candidates = scores[positions]
        threshold = np.partition(candidates, len(candidates) - k)[len(candidates) - k]
        # Keep all ties at the threshold, so that their order depends on position and not on the partition.
        positions = positions[candidates >= threshold]
    order = np.argsort(-scores[positions], kind="stable")[:k]
    return positions[order].astype(np.int64, copy=False)
