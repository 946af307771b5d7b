"""An estimate of an engine's prefix cache by demonstration, from the prompts sent to the engine."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import RLock

from ragalign.planning.conversations import Conversations
from ragalign.types import Hit, Turn

# Number of conversations whose demonstrations are remembered.
_CONVERSATIONS = 10_000


@dataclass(frozen=True, slots=True)
class PromptPart:
    """A part of a prompt: the beginning (special tokens, preamble, constants) or a demonstration."""

    id: str
    n_tokens: int


class Node:
    """A cached part that follows the parts above it; `end` is the number of tokens up to its end."""

    __slots__ = ("before", "children", "end", "parent", "part", "used")

    def __init__(self, part: PromptPart, parent: Node | None) -> None:
        self.part = part
        self.parent = parent
        self.end: int = part.n_tokens + (parent.end if parent else 0)
        self.children: dict[str, Node] = {}
        self.used = 0
        self.before: int | None = None


class PrefixMemory:
    """A bounded trie of prompt parts, one per engine. Planners and threads can share it.

    Like the engine, it evicts the least recently used parts first. Reports of the engine correct it: if a part was not
    cached after all, everything used less recently is evicted, too.

    Args:
        capacity: the engine's cache size in tokens.
    """

    def __init__(self, capacity: int = 1_000_000) -> None:
        self.capacity = capacity
        self.lock = RLock()
        self._root = Node(PromptPart("", 0), None)
        self._nodes: OrderedDict[Node, None] = OrderedDict()  # least recently used first, so leaves before parents
        self._holders: Counter[str] = Counter()
        self._clock = 0
        self._n_tokens = 0
        self._conversations = Conversations[list[Hit]](_CONVERSATIONS)

    @property
    def n_tokens(self) -> int:
        """Tokens that are estimated to be cached."""
        return self._n_tokens

    def find(self, parts: Iterable[PromptPart]) -> Node | None:
        """Find the node at the end of these parts; None if they are not cached."""
        node: Node | None = self._root
        for part in parts:
            node = node.children.get(part.id) if node else None
        return node

    def n_holders(self, id_: str) -> int:
        """The number of places where a demonstration is cached."""
        return self._holders[id_]

    def add(self, parts: Sequence[PromptPart]) -> None:
        """Record that a prompt with these parts was sent."""
        self._clock += 1
        node, path = self._root, []
        for part in parts:
            child = node.children.get(part.id)
            if child is None:
                child = node.children[part.id] = Node(part, node)
                self._holders[part.id] += 1
                self._n_tokens += part.n_tokens
            else:
                child.before = child.used
            child.used = self._clock
            path.append(child)
            node = child
        for child in reversed(path):
            self._nodes[child] = None
            self._nodes.move_to_end(child)
        while self._n_tokens > self.capacity and self._nodes:
            self._forget_oldest()

    def correct(self, parts: Sequence[PromptPart], n_cached: int, block_size: int) -> None:
        """Correct the estimate: `n_cached` tokens of a prompt with these parts came from the cache."""
        node = self._root
        for part in parts:
            child = node.children.get(part.id)
            if child is None or child.before is None:
                return  # not estimated to be cached before
            if child.end // block_size * block_size > n_cached:
                while self._nodes and next(iter(self._nodes)).used <= child.before:
                    self._forget_oldest()
                return
            node = child

    def remember(self, pool: str, turns: Sequence[Turn], hits: Sequence[Hit]) -> None:
        """Store the demonstrations of a conversation for its later turns; `pool` is the fingerprint of their pool."""
        self._conversations.keep(pool, turns, list(hits))

    def recall(self, pool: str, turns: Sequence[Turn]) -> list[Hit] | None:
        """The demonstrations of the previous turn, in prompt order, or None."""
        return self._conversations.find(pool, turns)

    def _forget_oldest(self) -> None:
        node, _ = self._nodes.popitem(last=False)
        assert node.parent is not None
        del node.parent.children[node.part.id]
        self._n_tokens -= node.part.n_tokens
        self._holders[node.part.id] -= 1
        if not self._holders[node.part.id]:
            del self._holders[node.part.id]
