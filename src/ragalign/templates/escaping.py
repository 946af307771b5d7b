r"""Neutralising a template's delimiters in text from outside, reversibly.

The *skeleton* of a text is the text as it reads: compatibility forms folded (NFKD), case folded, look-alikes of ASCII
characters replaced (the confusables of Unicode Technical Standard 39), and combining marks, zero-width and control
characters and the mark itself (a backslash) removed. Delimiters are searched in the skeleton. Each delimiter found has
one *cut*: a place inside the delimiter, where `Escaper.escape` inserts one mark. So ``# Query:`` becomes
``#\ Query:``, ``Question:`` at the start of a line becomes ``Question\:``, a fence becomes ```\``.

Since the skeleton ignores marks, a text and its escaped form have the same cuts. This makes the mapping reversible:
`Escaper.unescape` removes one mark at each cut that has one. A text without a delimiter in its skeleton has no cuts and
does not change.

What counts as a delimiter: its words in order, in the position of a delimiter (after ``#``, or at the start of a line
and before a colon), regardless of case, white space, look-alikes, Markdown and HTML tags around the words:
``> **Question**:``, ``# _Query_``, ``1. Question:``, ``- [x] <b>Question</b>:``. Tokenizers normalise these forms to
the same text, models continue them like the delimiter, or readers mistake them for it. Other words (``# Request:``,
``Question 1:``), other positions (``the Question:`` inside a line), other spellings (``Qu3ry``, ``Q u e r y``) and
translations are ordinary text: no template uses them, so models have not seen them as delimiters either.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

MARK = "\\"

# Special-token strings of common tokenizers. The packer adds those of the model's tokenizer.
SPECIAL_TOKENS = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[IMG]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]",
)  # fmt: skip
# <|endoftext|>, <|im_start|>, <|eot_id|> and similar ones. The skeleton has only one kind of bar.
_LONGEST_PIPED = 64
_PIPED_TOKEN = rf"<(?=\|[^|<>\s]{{1,{_LONGEST_PIPED}}}\|>)"

_BREAKS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_INDENT = rf"[^\S{_BREAKS}]*"
_LINE_START = rf"(?:\A|(?<=[{_BREAKS}])){_INDENT}"
_LINE_END = rf"{_INDENT}(?:[{_BREAKS}]|\Z)"
# Look-alikes missing from Unicode's confusables, and invisible fillers.
_LOOK_ALIKES = str.maketrans({
    char: plain
    for chars, plain in (
        ("\u02cb\u2035\u1fef", "`"), ("\u266f\u22d5\u2317\u29e3", "#"), ("\u1361\u2237\u2e2c\u205d\u2d57", ":"),
        ("\u0703\u0704\u16ec\u02d0\u02f8", ":"), ("\u2019\u2018\u02bc\u2032\u00b4\u055a", "'"),
        ("\u05c3\ufe30", ":"), ("\u0432\u03b2", "b"), ("\u03b5\u0454\u025b", "e"), ("\u043d", "h"),
        ("\u0131\u03b9\u2c93", "i"), ("\u043a\u03ba", "k"),
        ("\u043c\u03bc", "m"), ("\u03bd", "n"), ("\u0442\u03c4", "t"), ("\u03c5\u057d", "u"), ("\u0461\u051d", "w"),
        ("\u03c7", "x"), ("\u0443", "y"), ("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", ""),
    )
    for char in chars
})  # fmt: skip
# By their Unicode names: letters in circles, squares and brackets, on flags, with strokes and hooks; small capitals.
_DRESSED_LETTER = re.compile(
    r"LATIN (?:CAPITAL|SMALL) LETTER ([A-Z]) WITH .*|"
    r"(?:PARENTHESIZED|TORTOISE SHELL BRACKETED|CIRCLED ITALIC|(?:CROSSED )?(?:NEGATIVE )?(?:CIRCLED|SQUARED)) LATIN "
    r"(?:CAPITAL|SMALL) LETTER ([A-Z])|REGIONAL INDICATOR SYMBOL LETTER ([A-Z])|LATIN LETTER SMALL CAPITAL ([A-Z])"
)
# Not semicolons.
_COLON = re.compile(r"(?:.* )?COLON")


# Markdown around words (emphasis, code, brackets, quotes), a tag around all of them, and before a line (quotes, lists,
# tasks, footnotes).
_LONGEST_DRESS = 4
_DRESS_CHARACTER = r"(?:[^\w\s#]|_)"
_OPEN_TAG, _CLOSE_TAG = r"(?:<[a-z0-9]{1,6}>)?", r"(?:</[a-z0-9]{1,6}>)?"
_LONGEST_TAGS = 17
_MARKS = rf"(?:[^\w\s]{_INDENT})"
_NUMBER = rf"(?:(?:\d{{1,9}}|[a-z])[.)]{_INDENT}{_MARKS}{{0,4}})?"
_PREFIX = rf"{_MARKS}{{0,12}}{_NUMBER}(?:\[(?:x|\d{{1,3}})\]{_INDENT})?"
_LONGEST_PREFIX = 31

# Maximum number of cached foldings, to limit the memory for a text with very many different characters.
_MAX_FOLDS = 65_536


class _Folds(dict[int, str]):
    """The skeleton of each character; empty for invisible characters."""

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        if len(self) < _MAX_FOLDS:
            self[code] = folded
        return folded


def _fold(char: str) -> str:
    if char == MARK:
        return ""
    if char.isspace():
        return char
    if not char.isascii():
        name = unicodedata.name(char, "")
        if _COLON.fullmatch(name):
            return ":"
        if dressed := _DRESSED_LETTER.fullmatch(name):
            return str(next(filter(None, dressed.groups()))).lower().replace("l", "i")
    folded = unicodedata.normalize("NFKD", char.translate(_LOOK_ALIKES)).casefold().translate(_LOOK_ALIKES)
    folded = "".join(map(_look_alike, folded))
    # Marks of all kinds, and control, format, surrogate, private and unassigned characters. Unicode confuses a capital
    # I with a small l, so the skeleton treats them as equal.
    return "".join(c for c in folded if c != MARK and unicodedata.category(c)[0] not in "MC").replace("l", "i")


def _look_alike(char: str) -> str:
    """The lower-case ASCII text that a character is confusable with, or the character itself."""
    if char.isascii():
        return char
    from confusable_homoglyphs.confusables import confusables_data

    # Some small letters are only listed in their capital form.
    for form in (char, char.upper()):
        for candidate in confusables_data.get(form, ()):
            if candidate["c"].isascii() and candidate["c"].strip():
                return str(candidate["c"]).casefold()
    return char


_FOLDS = _Folds()


def _skeleton(text: str) -> str:
    return text.translate(_FOLDS)


def n_visible(text: str) -> int:
    """Count the characters of the skeleton that are not white space."""
    return len("".join(_skeleton(text).split()))


def in_skeleton(char: str) -> bool:
    """Whether a character contributes to the skeleton; the mark and invisible characters do not."""
    return bool(_FOLDS[ord(char)])


def _positions(text: str) -> Sequence[int]:
    """For each character of the skeleton its position in `text`, followed by the length of `text`."""
    positions: list[int] = []
    for position, char in enumerate(text):
        positions.extend([position] * len(_FOLDS[ord(char)]))
    return [*positions, len(text)]


class Escaper:
    """Neutralises a set of delimiters.

    Args:
        lines: delimiters at the start of a line in the template. Those with a leading ``#`` are headings (found
            anywhere), those with a letter or a digit are labels (found at the start of a line). Other strings are found
            anywhere, and single characters at the start of a line.
        strings: delimiters found anywhere; at least two characters each.

    Attributes:
        reach: number of visible characters after a mark that decide whether the mark is at a cut.
    """

    def __init__(self, lines: Iterable[str], strings: Iterable[str] = ()) -> None:
        lines, strings = list(lines), list(strings)
        around = _LONGEST_TAGS + _LONGEST_PREFIX
        dressed = [n_visible(line) + _LONGEST_DRESS * (2 * len(line.split()) + 2) + around for line in lines]
        self.reach = max([_LONGEST_PIPED + 4, *dressed, *map(n_visible, strings)])
        headings: set[str] = set()
        # Patterns, each with a string that texts without a match rarely contain: testing for it is faster.
        at_line_start: dict[str, str] = {}
        literal: set[str] = set()
        for line in filter(_skeleton, lines):
            if re.match(r"#+\s*\w", line):
                words = _dressed(line.lstrip("#").strip().removesuffix(":").rstrip())
                headings.add(rf"#(?=\s+{words}|{words}\s*:)")
                at_line_start[rf"#(?=\s*{words}{_LINE_END})"] = "#"
            elif len(line) == 1:
                # The mark goes before the character, so that it is not the first of its line.
                at_line_start[f"(?={_flexible(line)})"] = _skeleton(line)
            elif line[0].isalnum():
                at_line_start[_label(line)] = next(iter(_skeleton(line[:-1]).split()), "")
            else:
                literal.add(line)
        literal.update(string for string in strings if len(_skeleton(string)) > 1)
        # Search each label separately, since a match can span the beginning of another. All others consume one
        # character, so that a single search finds them all.
        anywhere = "|".join((*sorted(headings), _PIPED_TOKEN, *_literals(literal)))
        self._anywhere = re.compile(anywhere)
        self._at_line_start = [
            (held, re.compile(_LINE_START + pattern)) for pattern, held in sorted(at_line_start.items())
        ]

    def escape(self, text: str) -> str:
        """Insert one mark at every cut; returns the same object if there is none."""
        cuts = self.cuts(text)
        if not cuts:
            return text
        parts, start = [], 0
        for cut in cuts:
            parts += [text[start:cut], MARK]
            start = cut
        return "".join(parts) + text[start:]

    def unescape(self, text: str) -> str:
        """Invert `escape`. In other text, such as a model's output, marks at cuts are removed, too."""
        if MARK not in text:
            return text
        parts, start = [], 0
        for cut in self.cuts(text):
            if cut and text[cut - 1] == MARK:
                parts.append(text[start : cut - 1])
                start = cut
        return "".join(parts) + text[start:]

    def cuts(self, text: str) -> list[int]:
        """The positions in `text` where marks are inserted, ascending."""
        skeleton = _skeleton(text)
        ends = [match.end() for match in self._anywhere.finditer(skeleton)]
        labels = [
            match.end()
            for held, search in self._at_line_start
            if held in skeleton
            for match in search.finditer(skeleton)
        ]
        if labels:
            ends = sorted({*ends, *labels})
        if not ends:
            return []
        positions = _positions(text) if len(text) != len(skeleton) or not text.isascii() else range(len(text) + 1)
        # One character of the text can have several in the skeleton.
        return list(dict.fromkeys(positions[end] for end in ends))


def _flexible(text: str) -> str:
    """A pattern for the skeleton of `text`, with any amount of white space where it has some."""
    return "".join(_tokens(_skeleton(text)))


def _tokens(skeleton: str) -> tuple[str, ...]:
    return tuple(r"\s+" if part.isspace() else re.escape(part) for part in re.findall(r"\s+|\S", skeleton))


def _dressed(text: str, end: str = ":") -> str:
    """As `_flexible`, with Markdown around the words before `end`."""
    dress = rf"(?:(?!{_flexible(end)}){_DRESS_CHARACTER}){{0,{_LONGEST_DRESS}}}"
    words = rf"{dress}\s+{dress}".join(map(_flexible, text.split()))
    return rf"{dress}{_OPEN_TAG}{dress}{words}{dress}{_CLOSE_TAG}{dress}"


def _label(line: str) -> str:
    """A pattern that ends before the label's last character."""
    body, last = line[:-1], line[-1]
    if last.isalnum():
        return rf"{_PREFIX}{_flexible(body)}(?={_flexible(last)}(?!\w))"
    return rf"{_PREFIX}{_dressed(body.rstrip(), last)}\s*(?={_flexible(last)})"


def _literals(strings: Iterable[str]) -> list[str]:
    """Patterns that end after the first character of each string, one pattern per first character.

    A tokenizer can have a thousand special tokens, and a text a million of their first characters, so the rests form a
    tree.
    """
    rests: dict[str, set[tuple[str, ...]]] = {}
    for string in strings:
        # The first visible character, which can be several in the skeleton.
        first = next(filter(None, map(_skeleton, string)))
        rests.setdefault(first, set()).add(_tokens(_skeleton(string)[len(first) :]))
    return [f"{re.escape(first)}(?={_tree(rest)})" for first, rest in sorted(rests.items())]


def _tree(words: set[tuple[str, ...]]) -> str:
    if () in words:
        return ""
    rests: dict[str, set[tuple[str, ...]]] = {}
    for first, *rest in words:
        rests.setdefault(first, set()).add(tuple(rest))
    branches = [first + _tree(rest) for first, rest in sorted(rests.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


@lru_cache(maxsize=256)
def escaper_for(lines: tuple[str, ...], strings: tuple[str, ...]) -> Escaper:
    """The escaper of a template's delimiters and of common special tokens; see `Escaper`."""
    return Escaper(lines, (*strings, *SPECIAL_TOKENS))
