"""Keeping the demonstrations of a conversation, so that later turns find their prefix in the cache.

The demonstrations retrieved for a turn are kept for later turns, as long as the topic stays the same. It counts as the
same if the newest user turn

- has at most three words ("Go on.", "Why?"), or
- has a cosine similarity of at least `topic_threshold` to the turn that the demonstrations were retrieved for, both
  encoded as queries by the index's encoder.

With MiniLM, the default of 0.15 keeps the demonstrations for 79 % of MT-Bench's second turns, and detects 85 % of turns
about another question (``benchmarks/serving_topic.py``).

Otherwise demonstrations are retrieved again for the newest turn. Recipes that ignore the query (random, fixed) and
retrievers without an encoder keep them for the whole conversation. Reloading the index clears all conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragalign.types import Hit

# Encoders use a few hundred tokens, so longer texts are cut.
_MOST_CHARACTERS = 2000
_SHORT_TURN_WORDS = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """The candidates of a conversation, and the turn they were retrieved for."""

    text: str
    hits: tuple[Hit, ...]

    @classmethod
    def of(cls, text: str, hits: Sequence[Hit]) -> Kept:
        """The record of a retrieval."""
        return cls(text[:_MOST_CHARACTERS], tuple(hits))


def is_short(turn: str) -> bool:
    """Whether a turn is too short to have its own topic."""
    return len(turn.split()) <= _SHORT_TURN_WORDS
