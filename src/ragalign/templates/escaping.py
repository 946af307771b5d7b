r"""Neutralising a template's delimiters inside text that comes from outside, reversibly.

The *skeleton* of a text is what a reader makes of it: compatibility forms folded (NFKD), case folded,
combining marks, zero-width and control characters dropped, look-alike quotes and hash signs unified, and the
mark itself (a backslash) dropped too. Delimiters are searched in the skeleton. At each one found there is one
*cut*: a place inside the delimiter, where `Escaper.escape` inserts one mark. So ``# Query:`` becomes
``#\ Query:``, ``Question:`` at the start of a line becomes ``Question\:``, a fence becomes ```\``.

Since the skeleton ignores marks, a text and its escaped form have the same cuts. That makes the mapping a
bijection: `Escaper.unescape` removes one mark at each cut that has one. A text without a delimiter in its
skeleton has no cuts and stays as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

MARK = "\\"

# Special-token strings of common tokenizers. Tokenizers at hand add their own (see `Packer`).
SPECIAL_TOKENS = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[IMG]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]",
)  # fmt: skip
# <|endoftext|>, <|im_start|>, <|eot_id|> and their like, with either kind of bar.
_PIPED_TOKEN = r"<(?=[|\uff5c][^|\uff5c<>\s]{1,64}[|\uff5c]>)"

_LINE_BREAKS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_LINE_START = rf"(?:\A|(?<=[{_LINE_BREAKS}]))[^\S{_LINE_BREAKS}]*"
_NOT_PLAIN_ASCII = re.compile(r"[^\t-\r\x1c- !-\[\]-~]")  # control characters, the mark, everything beyond ASCII
_LOOK_ALIKES = str.maketrans({
    "\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u2032": "'", "\u00b4": "'", "\u02cb": "`", "\u266f": "#",
    "\u2236": ":", "\ua789": ":", "\u0430": "a", "\u0435": "e", "\u043e": "o", "\u0440": "p", "\u0441": "c",
    "\u0443": "y", "\u0445": "x", "\u0456": "i", "\u0455": "s", "\u03bf": "o", "\u0131": "i",
    **dict.fromkeys("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", ""),  # fillers that show nothing
})  # fmt: skip


@lru_cache(maxsize=4096)
def _fold(char: str) -> str:
    """What one character contributes to the skeleton; empty for characters that no reader sees."""
    if char == MARK:
        return ""
    if char.isspace():
        return char
    folded = unicodedata.normalize("NFKD", char.translate(_LOOK_ALIKES)).casefold().translate(_LOOK_ALIKES)
    return "".join(c for c in folded if c != MARK and unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc"))


def _skeleton(text: str) -> tuple[str, Sequence[int]]:
    """The skeleton, and for each of its characters the position in `text` that it came from."""
    if not _NOT_PLAIN_ASCII.search(text):
        return text.lower(), range(len(text))
    characters: list[str] = []
    positions: list[int] = []
    for position, char in enumerate(text):
        folded = _fold(char)
        characters.append(folded)
        positions.extend([position] * len(folded))
    return "".join(characters), positions


def _pattern(delimiter: str) -> str:
    """A regular expression over skeletons whose match ends at the delimiter's cut."""
    folded = _skeleton(delimiter)[0]
    if set(folded) == {"`"}:
        return "`(?=``)"  # every place with two more backticks behind it: no run of three is left
    if folded.startswith("#"):
        word = re.escape(folded.lstrip("#").strip().removesuffix(":"))
        return rf"#(?=\s+{word}|\s*{word}\s*:)"
    if folded.endswith(":"):
        return _LINE_START + r"\s+".join(re.escape(word) for word in folded[:-1].split()) + r"\s*(?=:)"
    return re.escape(folded[0]) + f"(?={re.escape(folded[1:])})"


class Escaper:
    """Neutralises a set of delimiters.

    Args:
        delimiters: strings to protect against. The kind shows in the form: backticks are a fence (found
            anywhere), a leading ``#`` makes a heading (anywhere), a trailing colon a label (at the start of a
            line), anything else is taken literally (anywhere). At least two characters each.
    """

    def __init__(self, delimiters: Iterable[str]) -> None:
        patterns = {_pattern(delimiter) for delimiter in delimiters if len(delimiter) > 1}
        # One look-ahead group per pattern would be slow; the alternatives exclude one another at a position,
        # but for labels, whose matches may span other cuts: those are searched on their own.
        labels = sorted(pattern for pattern in patterns if pattern.startswith(_LINE_START))
        others = sorted(patterns.difference(labels) | {_PIPED_TOKEN})
        self._searches = [re.compile(f"(?:{'|'.join(group)})") for group in (others, labels) if group]

    def escape(self, text: str) -> str:
        """`text` with one mark inserted at every cut; the same object when there is none."""
        cuts = self._cuts(text)
        if not cuts:
            return text
        parts, start = [], 0
        for cut in cuts:
            parts += [text[start:cut], MARK]
            start = cut
        return "".join(parts) + text[start:]

    def unescape(self, text: str) -> str:
        """The inverse of `escape`; on other text, such as a model's output, undoes what looks escaped."""
        if MARK not in text:
            return text
        parts, start = [], 0
        for cut in self._cuts(text):
            if text[cut - 1] == MARK:
                parts.append(text[start : cut - 1])
                start = cut
        return "".join(parts) + text[start:]

    def _cuts(self, text: str) -> list[int]:
        """Positions in `text` before which a mark goes, ascending."""
        skeleton, positions = _skeleton(text)
        ends = {match.end() for search in self._searches for match in search.finditer(skeleton)}
        return sorted({positions[end] for end in ends})
