"""Exchanging demonstrations for those of other prompts, where the tokens saved are worth the relevance lost.

The prompts of a batch are grown as a tree of shared runs, from the root. All queries at a node consider all of their
candidates. Moving one of their own demonstrations to the shared run saves its tokens. Taking a candidate from further
down the list saves the tokens of the own demonstration that it replaces. Both are weighed against relevance (all of it
costs `price` tokens) and against the length of the prompt: sharing should be rewarded, but not short prompts, so each
token by which a prompt becomes shorter counts `LENGTH_WEIGHT` against the exchange. The worth of a demonstration as the
next of the run is the sum over the queries of the node, minus the tokens that the first query prefills. The best
demonstration gets a node with the queries that gain from it; the other queries choose again among the rest. Each level
of the tree is evaluated at once, with lazy evaluation of the greedy choice (values only fall as queries leave: Minoux,
"Accelerated greedy algorithms", 1978), so that the work grows with the number of candidates, not of nodes.

The greedy tree over fixed sets comes from prompt reordering (ContextPilot, arXiv:2511.03475, among others). Pricing
exchanges per query with a multiplier, so that relevance is given up where it saves most, is added here.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ragalign.planning.batch import CandidateBatch, Selection, depth_first, discounts

# Cost of each token by which an exchange shortens a prompt. At 0 the cheapest plans have the shortest demonstrations;
# at 1 prompts grow towards their budget; with this value they stay as long as without planning.
LENGTH_WEIGHT = 0.6
# Rows evaluated at once, to limit the memory of temporaries.
_ROWS = 2048


@dataclass(slots=True)
class _State:
    """The choices made so far, by query."""

    used: NDArray[np.bool_]
    shared: NDArray[np.bool_]
    depth: NDArray[np.int64]
    node: NDArray[np.int64]


def exchange(
    batch: CandidateBatch,
    *,
    price: float,
    personal: int,
    clusters: NDArray[np.int64] | None = None,
) -> Selection:
    """Choose shared runs for a batch.

    Args:
        batch: queries and candidates.
        price: tokens that all of a prompt's relevance is worth; infinity keeps the plain sets.
        personal: number of most similar demonstrations that stay with the query, last in its prompt.
        clusters: int64 [m], cluster numbers from 0. With clusters there is one run per cluster, which queries can only
            leave, instead of a branching tree.
    """
    m = len(batch)
    state = _State(batch.plain, np.zeros_like(batch.plain), np.full(m, batch.n_before), np.zeros(m, dtype=np.int64))
    parents = [0]
    if clusters is not None:
        state.node = clusters + 1
        parents += [0] * (int(clusters.max(initial=-1)) + 1)
    paths: list[list[int]] = [[] for _ in range(m)]
    active = np.arange(m)
    while len(active) > 1 and batch.items.shape[1]:
        active = _grow(batch, state, active, parents, paths, price, personal, once=clusters is not None)
    residents: dict[int, list[int]] = {}
    for query, node in enumerate(state.node.tolist()):
        residents.setdefault(node, []).append(query)
    order = depth_first(parents, residents)
    return Selection(paths, state.shared, state.used & ~state.shared, order)


def _grow(
    batch: CandidateBatch,
    state: _State,
    active: NDArray[np.int64],
    parents: list[int],
    paths: list[list[int]],
    price: float,
    personal: int,
    *,
    once: bool,
) -> NDArray[np.int64]:
    """Grow one level: add nodes for the best next demonstrations of all runs; returns the queries that moved."""
    parts = [_worth(batch, state, active[at : at + _ROWS], price, personal) for at in range(0, len(active), _ROWS)]
    rows = np.concatenate([part[0] + at * _ROWS for at, part in enumerate(parts)])
    columns, worth, displaced = (np.concatenate([part[i] for part in parts]) for i in (1, 2, 3))
    items = batch.items[active[rows], columns]
    # One segment for each (node, demonstration): the queries that would gain from it.
    keys = state.node[active[rows]] * len(batch.lengths) + items
    order = np.argsort(keys, kind="stable")
    rows, columns, worth, displaced, items = (each[order] for each in (rows, columns, worth, displaced, items))
    starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
    ends = np.append(starts[1:], len(rows))
    if not len(starts):
        return active[:0]
    depth = state.depth[active[rows[starts]]]
    costs = batch.cached(depth + batch.lengths[items[starts]]) - batch.cached(depth)
    totals = np.add.reduceat(worth, starts) - costs
    promising = np.flatnonzero((totals > 0) & (ends - starts > 1))
    heap = [(-total, segment) for total, segment in zip(totals[promising].tolist(), promising.tolist(), strict=True)]
    heapq.heapify(heap)
    free = np.ones(len(active), dtype=np.bool_)
    closed: set[int] = set()
    while heap:
        stale, segment = heapq.heappop(heap)
        here = slice(starts[segment], ends[segment])
        left = free[rows[here]]
        members = rows[here][left]
        total = float(worth[here][left].sum()) - int(costs[segment])
        if len(members) < 2 or total <= 0:
            continue
        if heap and total < -heap[0][0] and total < -stale:
            heapq.heappush(heap, (-total, segment))
            continue
        queries, item = active[members], int(items[starts[segment]])
        parent = int(state.node[queries[0]])
        if once and parent in closed:
            continue
        closed.add(parent)
        free[members] = False
        gone = displaced[here][left]
        state.used[queries[gone >= 0], gone[gone >= 0]] = False
        state.used[queries, columns[here][left]] = True
        state.shared[queries, columns[here][left]] = True
        state.depth[queries] += batch.lengths[item]
        state.node[queries] = len(parents)
        parents.append(parent)
        for query in queries.tolist():
            paths[query].append(item)
    return active[~free]


def _worth(
    batch: CandidateBatch, state: _State, queries: NDArray[np.int64], price: float, personal: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """The worth of each candidate to each query as the next of its run, where it is positive.

    Returns rows, columns, the worth in tokens, and the column that it replaces (-1 if it is already in the prompt), all
    of the same length.
    """
    used, tokens = state.used[queries], batch.tokens[queries]
    depth = state.depth[queries][:, None]
    own = used & ~state.shared[queries]
    own[:, :personal] = False
    # A longer run saves whole blocks; the steps of a run add up to the blocks of the whole run.
    steps = batch.cached(depth + tokens) - batch.cached(depth)
    worth = np.where(own, steps, 0).astype(np.float64)
    displaced = np.full(worth.shape, -1)
    if np.isfinite(price):
        _displace(batch, queries, used, own, steps, price, worth, displaced)
    rows, columns = np.nonzero(worth > 0)
    return rows, columns, worth[rows, columns], displaced[rows, columns]


def _displace(
    batch: CandidateBatch,
    queries: NDArray[np.int64],
    used: NDArray[np.bool_],
    own: NDArray[np.bool_],
    steps: NDArray[np.int64],
    price: float,
    worth: NDArray[np.float64],
    displaced: NDArray[np.int64],
) -> None:
    """For each candidate that is not in the prompt, consider replacing an own demonstration."""
    gains, tokens = batch.gains[queries], batch.tokens[queries]
    n = used.shape[1]
    weights = discounts(n + 1)
    rank: NDArray[np.int64] = np.cumsum(used, axis=1) - used
    dcg = np.where(used, gains * weights[rank], 0.0)
    risen = np.where(used, gains * weights[np.maximum(rank - 1, 0)], 0.0)
    whole = dcg.sum(axis=1, keepdims=True)
    best = np.where(batch.plain[queries], gains, 0.0) @ weights[:n]
    scale = price / np.where(best > 0, best, np.inf)[:, None]
    # Without a column, later columns move up by one rank, and the new demonstration gets the last rank.
    rest = np.cumsum(dcg, axis=1) - dcg + risen.sum(axis=1, keepdims=True) - np.cumsum(risen, axis=1)
    losses = np.where(own, (whole - rest) * scale, np.inf)
    consolation = gains * weights[np.maximum(used.sum(axis=1) - 1, 0)][:, None] * scale
    room = (batch.budgets[queries] - np.where(used, tokens, 0).sum(axis=1))[:, None]
    there: NDArray[np.bool_] = (batch.items[queries] >= 0) & ~used & own.any(axis=1, keepdims=True)
    rows = np.arange(len(queries))
    # Consider two own demonstrations: the one that is most expensive to keep and, if that frees too few tokens, the
    # longest.
    dearest = np.where(own, (1 - LENGTH_WEIGHT) * tokens - losses, -np.inf).argmax(axis=1)
    longest = np.where(own, tokens, -1).argmax(axis=1)
    for place in (dearest, longest):
        freed = tokens[rows, place][:, None]
        shorter = freed - tokens
        value = freed - LENGTH_WEIGHT * shorter - losses[rows, place][:, None] + consolation - (tokens - steps)
        better = there & (room + shorter >= 0) & (value > worth)
        np.copyto(worth, value, where=better)
        np.copyto(displaced, place[:, None], where=better)
