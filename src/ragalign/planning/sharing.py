"""Ordering given sets of demonstrations, so that prompts share the longest runs.

The edges of the tree have *sets* of demonstrations. The order within an edge is open until a query shares only part of
the set: this splits the edge, with the common part first. Queries are inserted one at a time where they share the most
tokens. Then they are removed and inserted again a few times, since the first ones had nothing to share with. Each
insertion looks up the query's demonstrations in inverted lists at the nodes on its way, so its cost is about the number
of other edges with one of them. Memory is linear in the size of the sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class _Node:
    """An inner node, or a leaf with a query. Its edge has the demonstrations that exactly the leaves below it share."""

    __slots__ = ("children", "edge", "index", "parent", "query")

    def __init__(self, edge: frozenset[int], query: int | None = None) -> None:
        self.edge = edge
        self.query = query
        self.parent: _Node | None = None
        self.children: dict[_Node, None] = {}  # in order of insertion, so that plans are reproducible
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
    """Find for each set a run of members to begin with, so that many tokens are shared in whole blocks.

    Args:
        sets: demonstration numbers of each query.
        lengths: tokens of each demonstration.
        order: the queries in the order of their first insertion.
        passes: how often to insert all queries again.
        n_before: tokens at the beginning of all prompts.
        block_size: tokens per block of the prefix cache.

    Returns:
        The shared run of each query, and the queries in the order in which to send them.
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
            # Nothing branches here any more: merge the two edges.
            [child] = node.children
            above = node.parent
            above.drop(node)
            child.edge = child.edge | node.edge
            above.add(child)

    def _best(self, node: _Node, rest: frozenset[int], depth: int) -> tuple[int, int, _Node, bool, frozenset[int]]:
        """The best place below `node`: tokens shared in blocks and in all, node, whether it splits, other members."""
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
        """The shared run of every query, and the queries in depth-first order."""
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
