"""Joins: places where the ids of a prompt's parts can be concatenated.

Tokenising the parts of a text separately seldom gives the ids of the whole: SentencePiece adds a dummy space before
each text, and byte-level BPE merges across the join. But at some places nothing ever merges, such as between a line
break and the heading after it. A `Join` describes such a place by the constant strings on both sides. A part is then
tokenised between these strings, and their ids are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ragalign.tokenization import Tokenizer

# Texts on both sides of a join to test it with: each kind of character that pre-tokenizers distinguish.
_PROBES = (
    "word", "7", ".", " ", "  ", "\n", "\n\n", " \n ", "\t", "\r\n", "`", "```", "#", "# ", "\u4f60\u597d", "\u00e9",
    "e\u0301", "\U0001f642", "\u200b", "\u05d0", "'s", ":", "\\", "\x00",
)  # fmt: skip


class Join:
    """The join between a constant string `left` and a constant string `right`.

    Attributes:
        safe: whether ids can be concatenated there; proven for the tokenizer on construction.
    """

    def __init__(self, tokenizer: Tokenizer, left: str, right: str) -> None:
        self._tokenizer = tokenizer
        self._left = left
        self._right = right
        self.safe = False
        if not left or not right or tokenizer.may_cross(left[-1], right[0]):
            return
        split = tokenizer.split_at(left + right, len(left))
        if split is None:
            return
        self._n_left = split
        self._n_right = len(tokenizer.encode(left + right)) - split
        self.safe = self._proven()

    def encode_before(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts at the start of a prompt; each ends with `left`, and `right` follows."""
        found = self._tokenizer.encode_batch([text + self._right for text in texts])
        return [ids[: len(ids) - self._n_right] for ids in found]

    def encode_between(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that begin with `right` and end with `left`, between other such texts."""
        found = self._tokenizer.encode_batch([self._left + text + self._right for text in texts])
        return [ids[self._n_left : len(ids) - self._n_right] for ids in found]

    def encode_after(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts at the end of a prompt; each begins with `right`, and `left` precedes it."""
        found = self._tokenizer.encode_batch([self._left + text for text in texts])
        return [ids[self._n_left :] for ids in found]

    def _proven(self) -> bool:
        """Whether the ids of parts add up to those of the whole, for every pair of probes around the join.

        Joins fail in two ways: merges, which `Tokenizer.may_cross` excludes (no piece of the vocabulary spans the
        join), and pre-tokenizers or normalisers that look across the join, which the probes detect.
        """
        lefts = [probe + self._left for probe in _PROBES]
        rights = [self._right + probe for probe in _PROBES]
        middle = self._right + "x" + self._left
        before, after = self.encode_before(lefts), self.encode_after(rights)
        [between] = self.encode_between([middle])
        wholes = self._tokenizer.encode_batch([left + middle + right for left, right in product(lefts, rights)])
        parts = [first + between + last for first, last in product(before, after)]
        return wholes == parts
