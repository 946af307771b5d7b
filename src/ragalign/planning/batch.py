"""A batch of queries and candidates as arrays, and the selection that a strategy makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragalign.types import Hit


@dataclass(frozen=True, slots=True)
class CandidateBatch:
    """Queries whose prompts have the same beginning, and their candidates: m queries, n columns, p demonstrations.

    The first columns are the plain choice (without planning), the others are further candidates; both best first.

    Attributes:
        items: int64 [m, n], the demonstrations' numbers (below p); -1 if a query has no more candidates.
        gains: float64 [m, n], their relevance: the score, or 0 if it is negative.
        tokens: int64 [m, n], the maximum tokens of each.
        n_plain: int64 [m], number of demonstrations in the plain choice.
        budgets: int64 [m], maximum tokens of all demonstrations of a prompt.
        lengths: int64 [p], tokens of each demonstration.
        ids: the demonstrations' ids, by number.
        n_before: tokens before the first demonstration: special tokens, preamble, constant demonstrations.
        block_size: tokens per block of the prefix cache.
    """

    items: NDArray[np.int64]
    gains: NDArray[np.float64]
    tokens: NDArray[np.int64]
    n_plain: NDArray[np.int64]
    budgets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    ids: Sequence[str]
    n_before: int
    block_size: int

    @classmethod
    def of(
        cls,
        plain: Sequence[Sequence[Hit]],
        others: Sequence[Sequence[Hit]],
        token_counts: Mapping[str, int],
        budgets: Sequence[int],
        *,
        n_before: int,
        block_size: int,
    ) -> CandidateBatch:
        """Make a batch from hits: for each query the plain choice and the other candidates, both best first."""
        number: dict[str, int] = {}
        rows = [[*first, *rest] for first, rest in zip(plain, others, strict=True)]
        n = max(map(len, rows), default=0)
        items = np.full((len(rows), n), -1, dtype=np.int64)
        gains = np.zeros((len(rows), n))
        for row, hits in enumerate(rows):
            items[row, : len(hits)] = [number.setdefault(hit.id, len(number)) for hit in hits]
            gains[row, : len(hits)] = [hit.score for hit in hits]
        n_plain = np.array([len(hits) for hits in plain], dtype=np.int64)
        gains = np.maximum(gains, 0)
        # Scores that are never positive (negative distances) are not gains: treat all candidates as equal.
        blank = (gains * (np.arange(n) < n_plain[:, None])).sum(axis=1) <= 0
        gains[blank] = 1.0
        lengths = np.array([token_counts[id_] for id_ in number], dtype=np.int64)
        padded = np.append(lengths, 0)
        return cls(
            items=items,
            gains=np.where(items >= 0, gains, 0.0),
            tokens=padded[items],
            n_plain=n_plain,
            budgets=np.array(budgets, dtype=np.int64),
            lengths=lengths,
            ids=list(number),
            n_before=n_before,
            block_size=block_size,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def plain(self) -> NDArray[np.bool_]:
        """Bool [m, n]: the columns of the plain choice."""
        mask: NDArray[np.bool_] = np.arange(self.items.shape[1]) < self.n_plain[:, None]
        return mask

    def relevance(self, used: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Relevance kept by each query, float64 [m]: the nDCG of the `used` columns [m, n] against the plain choice.

        Each demonstration adds its gain times 1 / log2(rank + 1), ranked by score (Järvelin and Kekäläinen, "Cumulated
        gain-based evaluation of IR techniques", 2002). Queries without a plain choice keep all relevance.
        """
        if not self.items.shape[1]:
            return np.ones(len(self))
        best = self._dcg(self.plain)
        kept: NDArray[np.float64] = np.divide(self._dcg(used), best, out=np.ones(len(self)), where=best > 0)
        return kept

    def _dcg(self, used: NDArray[np.bool_]) -> NDArray[np.float64]:
        ranked = -np.sort(-np.where(used, self.gains, 0.0), axis=1)
        total: NDArray[np.float64] = ranked @ discounts(ranked.shape[1])
        return total

    def cached(self, depth: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens in whole blocks of a shared run that ends `depth` tokens after the beginning."""
        whole: NDArray[np.int64] = depth // self.block_size * self.block_size
        return whole


@dataclass(frozen=True, slots=True)
class Selection:
    """The result of a strategy: for each query the run shared with others, and its own demonstrations.

    Attributes:
        paths: the shared run of each query as demonstration numbers, in prompt order.
        shared: bool [m, n], the columns in the query's path.
        own: bool [m, n], the columns that follow it, most similar last.
        order: the queries in the order in which to send them.
    """

    paths: Sequence[Sequence[int]]
    shared: NDArray[np.bool_]
    own: NDArray[np.bool_]
    order: Sequence[int]

    def n_tokens(self, batch: CandidateBatch) -> int:
        """Tokens of demonstrations to prefill, counting shared runs once and ignoring blocks."""
        total = int(np.where(self.own, batch.tokens, 0).sum())
        lengths = batch.lengths.tolist()
        nodes: dict[tuple[int, int], int] = {}
        for path in self.paths:
            node = 0
            for item in path:
                if (node, item) not in nodes:
                    nodes[node, item] = len(nodes) + 1
                    total += lengths[item]
                node = nodes[node, item]
        return total


def discounts(n: int) -> NDArray[np.float64]:
    """1 / log2(rank + 1) for the ranks 1 to n, float64 [n]."""
    weights: NDArray[np.float64] = 1 / np.log2(np.arange(2, n + 2))
    return weights


def depth_first(parents: Sequence[int], residents: Mapping[int, Iterable[int]]) -> list[int]:
    """Order queries depth-first in a tree: node 0 is the root, `parents` are by node, children come after parents.

    Requests that share the longest runs are next to each other, so that even a small cache still has the run.
    """
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        if node:
            children.setdefault(parent, []).append(node)
    order: list[int] = []
    waiting = [0]
    while waiting:
        node = waiting.pop()
        order += residents.get(node, ())
        waiting += reversed(children.get(node, ()))
    return order
