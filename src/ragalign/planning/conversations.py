"""A bounded memory of conversations, so that later turns can keep the demonstrations of earlier ones.

A conversation is identified by a hash of its turns, without the model's answers: clients can trim an answer, request
several, or request an answer again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from ragalign.types import Turn

T = TypeVar("T")


class Conversations(Generic[T]):
    """Stores a value for each of at most `most` conversations, evicting the least recently used."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[bytes, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def find(self, setting: str, turns: Sequence[Turn]) -> T | None:
        """The value stored for the previous turn; None for a new or unknown conversation.

        `setting` identifies everything else that the value depends on, such as the recipe or the pool.
        """
        if len(turns) < 3 or turns[-2].role != "assistant":
            return None
        key = _key(setting, turns[:-2])
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def keep(self, setting: str, turns: Sequence[Turn], value: T) -> None:
        """Store a value for the turn that follows `turns`."""
        if not self._most:
            return
        key = _key(setting, turns)
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)

    def forget(self) -> None:
        """Forget all."""
        self._values.clear()


def _key(setting: str, turns: Sequence[Turn]) -> bytes:
    digest = hashlib.sha256(setting.encode())
    for turn in turns:
        if turn.role == "assistant":
            digest.update(b"\0a")
            continue
        content = turn.content.encode("utf-8", "surrogatepass")
        digest.update(b"\0%b%d:" % (turn.role.encode(), len(content)))
        digest.update(content)
    return digest.digest()
