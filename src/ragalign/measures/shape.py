"""The shape of an answer: how much it repeats itself, and its length relative to a reference."""

from __future__ import annotations

from collections.abc import Sequence

N_GRAM = 4


def repetition(text: str, n: int = N_GRAM) -> float | None:
    """The share of word `n`-grams that occurred in the text before; None where the text has fewer words.

    This is ``rep-n`` of Welleck et al. (1908.04319) over white-space words: 1 minus unique over all.
    """
    words = text.split()
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def length_ratio(text: str, references: Sequence[str]) -> float | None:
    """Words of a text over the mean number of words of the references; None without references or words in them."""
    lengths = [len(reference.split()) for reference in references]
    if not lengths or not sum(lengths):
        return None
    return len(text.split()) / (sum(lengths) / len(lengths))
