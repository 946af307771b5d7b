"""Which demonstrations a conversation has, so that its later turns find their prefix in the cache.

The rule: the demonstrations retrieved for a turn stay for the turns that follow it, as long as the topic holds. It
holds while the newest user turn

- has at most three words ("Go on.", "Why?"), or
- has a cosine similarity of at least `topic_threshold` to the turn that the demonstrations were retrieved for, both
  encoded as queries by the index's encoder.

With MiniLM, the default of 0.15 keeps 79 % of MT-Bench's second turns and notices 85 % of the turns that are about
another of its questions (``benchmarks/serving_topic.py``).

Otherwise demonstrations are retrieved again, for the newest turn. Recipes that do not look at the query (random, fixed)
and retrievers without an encoder keep theirs for the whole conversation. A reload of the index forgets everything.

A conversation is known by a hash of its turns before the last answer: what the model said is not looked at, so that
clients may trim answers, ask for several, or ask for one again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from ragalign.types import Hit, Turn

# Encoders look at a few hundred tokens; a longer text need not be kept.
_MOST_CHARACTERS = 2000
_SHORT_TURN_WORDS = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """The candidates of a conversation, and the turn that they were retrieved for."""

    text: str
    hits: tuple[Hit, ...]

    @classmethod
    def of(cls, text: str, hits: Sequence[Hit]) -> Kept:
        """The record of a retrieval."""
        return cls(text[:_MOST_CHARACTERS], tuple(hits))


class Conversations:
    """Remembers the demonstrations of at most `most` conversations; the least recently used are forgotten first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, setting: str, turns: Sequence[Turn]) -> Kept | None:
        """The record of the turn before last; None for a new or unknown conversation.

        `setting` names everything else that candidates depend on: recipe, options, generation of the index.
        """
        if len(turns) < 3 or turns[-2].role != "assistant":
            return None
        key = _key(setting, turns[:-2])
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
        return kept

    def keep(self, setting: str, turns: Sequence[Turn], kept: Kept) -> None:
        """Remember the demonstrations of the prompt that `turns` became."""
        if not self._most:
            return
        key = _key(setting, turns)
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def forget(self) -> None:
        """Forget all."""
        self._kept.clear()


def is_short(turn: str) -> bool:
    """Whether a turn is too short to be about anything of its own."""
    return len(turn.split()) <= _SHORT_TURN_WORDS


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
