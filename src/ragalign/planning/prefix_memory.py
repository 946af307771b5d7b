"""An estimate of what an engine's prefix cache holds, by demonstration, from the prompts that were sent to it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import RLock

from ragalign.planning.conversations import Conversations
from ragalign.types import Hit, Turn

# Conversations whose demonstrations are remembered.
_CONVERSATIONS = 10_000


@dataclass(frozen=True, slots=True)
class PromptPart:
    """One part of a prompt: the beginning (special tokens, preamble, constants) or a demonstration."""

    id: str
    n_tokens: int


class Node:
    """A part that the engine holds after those above it; `end` counts the tokens up to here."""

    __slots__ = ("before", "children", "end", "parent", "part", "used")

    def __init__(self, part: PromptPart, parent: Node | None) -> None:
        self.part = part
        self.parent = parent
        self.end: int = part.n_tokens + (parent.end if parent else 0)
        self.children: dict[str, Node] = {}
        self.used = 0
        self.before: int | None = None


class PrefixMemory:
    """A bounded trie of prompts' parts. One for each engine; several planners may share it, from several threads.

    It forgets like the engine does, the least recently used first, and what reports disprove: where the engine had
    less than was thought, everything that was used longer ago than the missing part is gone too.

    Args:
        capacity: tokens that the engine has room for.
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
        """Tokens that are thought to be held."""
        return self._n_tokens

    def find(self, parts: Iterable[PromptPart]) -> Node | None:
        """The node at the end of these parts, or None."""
        node: Node | None = self._root
        for part in parts:
            node = node.children.get(part.id) if node else None
        return node

    def n_holders(self, id_: str) -> int:
        """In how many places a demonstration is held."""
        return self._holders[id_]

    def add(self, parts: Sequence[PromptPart]) -> None:
        """Note that a prompt of these parts was sent."""
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
        """Learn from a report: of a prompt of these parts, `n_cached` tokens came from the cache."""
        node = self._root
        for part in parts:
            child = node.children.get(part.id)
            if child is None or child.before is None:
                return  # not thought to be held before
            if child.end // block_size * block_size > n_cached:
                while self._nodes and next(iter(self._nodes)).used <= child.before:
                    self._forget_oldest()
                return
            node = child

    def remember(self, pool: str, turns: Sequence[Turn], hits: Sequence[Hit]) -> None:
        """Keep the demonstrations of a conversation for its later turns; `pool` is the fingerprint of theirs."""
        self._conversations.keep(pool, turns, list(hits))

    def recall(self, pool: str, turns: Sequence[Turn]) -> list[Hit] | None:
        """The demonstrations of the turn before, in prompt order, or None."""
        return self._conversations.find(pool, turns)

    def _forget_oldest(self) -> None:
        node, _ = self._nodes.popitem(last=False)
        assert node.parent is not None
        del node.parent.children[node.part.id]
        self._n_tokens -= node.part.n_tokens
        self._holders[node.part.id] -= 1
        if not self._holders[node.part.id]:
            del self._holders[node.part.id]
