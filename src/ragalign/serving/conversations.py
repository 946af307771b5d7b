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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragalign.types import Hit

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


def is_short(turn: str) -> bool:
    """Whether a turn is too short to be about anything of its own."""
    return len(turn.split()) <= _SHORT_TURN_WORDS
