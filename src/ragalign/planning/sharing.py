"""Ordering given sets of demonstrations so that prompts share the longest runs.

A tree whose edges carry *sets* of demonstrations: an edge's order is open until a query shares part of it only, which
then splits the edge, the common part first. Queries are put in one after another where they share the most tokens,
and then taken out and put in again, a few times: the first ones had no one to share with. Each placement looks up
the query's demonstrations in an inverted list at the nodes on its way, so it costs about as many steps as there are
other edges with one of them; memory is linear in the size of the sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class _Node:
    """An inner node, or (with a query) a leaf. The edge above it holds what all below it have, and nobody beside."""

    __slots__ = ("children", "edge", "index", "parent", "query")

    def __init__(self, edge: frozenset[int], query: int | None = None) -> None:
        self.edge = edge
        self.query = query
        self.parent: _Node | None = None
        self.children: dict[_Node, None] = {}  # in order of arrival, so that plans repeat
        self.index: dict[int, dict[_Node, None]] = {}

    def add(self, child: _Node) -> None:
        self.children[child] = None
        child.parent = self
        for item in child.edge:
            self.index.setdefault(item, {})[child] = None

    def drop(self, child: _Node) -> None:
        del self.children[child]
        for item in child.edge:
            holders = self.index[item]
            del holders[child]
            if not holders:
                del self.index[item]


def share(
    sets: Sequence[frozenset[int]],
    lengths: Sequence[int],
    order: Iterable[int],
    *,
    passes: int,
    n_before: int = 0,
    block_size: int = 1,
) -> tuple[list[list[int]], list[int]]:
    """Find for each set a run of its members to begin with, so that many tokens are shared in whole blocks.

    Args:
        sets: numbers of demonstrations, by query.
        lengths: tokens by demonstration.
        order: the queries in the order of their first placement.
        passes: how often all queries are placed again.
        n_before: tokens that all prompts begin with.
        block_size: tokens per block of the prefix cache.

    Returns:
        The shared run of each query, and the queries in the order in which they should be asked.
    """
    tree = _Tree(lengths, n_before, block_size)
    first = list(order)
    leaves: dict[int, _Node] = {query: tree.insert(query, sets[query]) for query in first}
    for _ in range(passes):
        for query in first:
            tree.remove(leaves[query])
            leaves[query] = tree.insert(query, sets[query])
    return tree.runs(len(sets))


class _Tree:
    def __init__(self, lengths: Sequence[int], n_before: int, block_size: int) -> None:
        self._lengths = lengths
        self._n_before = n_before
        self._block = block_size
        self._root = _Node(frozenset())

    def insert(self, query: int, members: frozenset[int]) -> _Node:
        _, _, at, partial, rest = self._best(self._root, members, self._n_before)
        if not partial:
            leaf = _Node(rest, query)
            at.add(leaf)
            return leaf
        above = at.parent
        assert above is not None
        common = at.edge & rest
        above.drop(at)
        middle = _Node(common)
        above.add(middle)
        at.edge = at.edge - common
        middle.add(at)
        leaf = _Node(rest - common, query)
        middle.add(leaf)
        return leaf

    def remove(self, leaf: _Node) -> None:
        node = leaf.parent
        assert node is not None
        node.drop(leaf)
        if node.parent is not None and len(node.children) == 1:
            # Nothing branches here any more: the two edges are one again.
            [child] = node.children
            above = node.parent
            above.drop(node)
            child.edge = child.edge | node.edge
            above.add(child)

    def _best(self, node: _Node, rest: frozenset[int], depth: int) -> tuple[int, int, _Node, bool, frozenset[int]]:
        """Where to put a query below `node`: whole-block and all tokens shared, node, whether it splits, the rest."""
        best = (depth // self._block, depth, node, False, rest)
        overlaps: dict[_Node, int] = {}
        lengths, index = self._lengths, node.index
        for item in rest:
            for child in index.get(item, ()):
                overlaps[child] = overlaps.get(child, 0) + lengths[item]
        for child, overlap in overlaps.items():
            if child.query is None and child.edge <= rest:
                found = self._best(child, rest - child.edge, depth + overlap)
            else:
                shared = depth + overlap
                found = (shared // self._block, shared, child, True, rest)
            if found[:2] > best[:2]:
                best = found
        return best

    def runs(self, n: int) -> tuple[list[list[int]], list[int]]:
        """The shared run of every query, and the queries depth first."""
        runs: list[list[int]] = [[] for _ in range(n)]
        order: list[int] = []
        waiting: list[tuple[_Node, list[int]]] = [(self._root, [])]
        while waiting:
            node, run = waiting.pop()
            waiting += [(child, run + sorted(child.edge)) for child in reversed(node.children) if child.query is None]
            for child in node.children:
                if child.query is not None:
                    runs[child.query] = run
                    order.append(child.query)
        return runs, order
