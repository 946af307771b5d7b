r"""Neutralising a template's delimiters inside text that comes from outside, reversibly.

The *skeleton* of a text is how it reads: compatibility forms folded (NFKD), case folded, look-alikes of ASCII
characters replaced by these (the confusables of Unicode Technical Standard 39), combining marks, zero-width and control
characters dropped, and the mark itself (a backslash) dropped too. Delimiters are searched in the skeleton. At each one
found there is one *cut*: a place inside the delimiter, where `Escaper.escape` inserts one mark. So ``# Query:`` becomes
``#\ Query:``, ``Question:`` at the start of a line becomes ``Question\:``, a fence becomes ```\``.

Since the skeleton ignores marks, a text and its escaped form have the same cuts. That makes the mapping reversible:
`Escaper.unescape` removes one mark at each cut that has one. A text without a delimiter in its skeleton has no cuts and
stays as it is.

Where the line is drawn. A delimiter is found if its words come in their order and in the position that makes them a
delimiter: after ``#``, or at the start of a line and before a colon. Neither case, white space, look-alikes nor what
Markdown puts around words changes that: ``> **Question**:``, ``# _Query_``, ``1. Question:``. Normalisers of
tokenizers fold these forms together, models continue them like the delimiter itself, or readers of the page take them
for it. Other words (``# Request:``), other positions (``the Question:`` inside a line), other spellings (``Qu3ry``)
and translations are ordinary text: no template has used them, so a model has not seen them as a delimiter either.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

MARK = "\\"

# Special-token strings of common tokenizers. Tokenizers at hand add their own (see `Packer`).
SPECIAL_TOKENS = (
    "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>",
    "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[IMG]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]",
)  # fmt: skip
# <|endoftext|>, <|im_start|>, <|eot_id|> and their like. The skeleton has one kind of bar only.
_LONGEST_PIPED = 64
_PIPED_TOKEN = rf"<(?=\|[^|<>\s]{{1,{_LONGEST_PIPED}}}\|>)"

_BREAKS = "\n\r\v\f\x1c-\x1e\x85\u2028\u2029"
_INDENT = rf"[^\S{_BREAKS}]*"
_LINE_START = rf"(?:\A|(?<=[{_BREAKS}])){_INDENT}"
_LINE_END = rf"{_INDENT}(?:[{_BREAKS}]|\Z)"
# Look-alikes that Unicode's confusables do not have, and fillers that show nothing.
_LOOK_ALIKES = str.maketrans({
    char: plain
    for chars, plain in (
        ("\u02cb\u2035\u1fef", "`"), ("\u266f\u22d5\u2317\u29e3", "#"), ("\u1361\u2237\u2e2c\u205d\u2d57", ":"),
        ("\u0703\u0704\u16ec\u02d0\u02f8", ":"), ("\u2019\u2018\u02bc\u2032\u00b4\u055a", "'"),
        ("\u0432\u03b2", "b"), ("\u03b5", "e"), ("\u043d", "h"), ("\u0131\u03b9\u2c93", "i"), ("\u043a\u03ba", "k"),
        ("\u043c\u03bc", "m"), ("\u03bd", "n"), ("\u0442\u03c4", "t"), ("\u03c5\u057d", "u"), ("\u0461\u051d", "w"),
        ("\u03c7", "x"), ("\u0443", "y"), ("\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", ""),
    )
    for char in chars
})  # fmt: skip
# Letters in circles, squares and brackets, on flags, and small capitals, by their names in Unicode.
_DRESSED_LETTER = re.compile(
    r"(?:PARENTHESIZED|TORTOISE SHELL BRACKETED|CIRCLED ITALIC|(?:CROSSED )?(?:NEGATIVE )?(?:CIRCLED|SQUARED)) LATIN "
    r"(?:CAPITAL|SMALL) LETTER ([A-Z])|REGIONAL INDICATOR SYMBOL LETTER ([A-Z])|LATIN LETTER SMALL CAPITAL ([A-Z])"
)


# What Markdown puts around words (emphasis, code, brackets, quotes) and before a line (quotes, lists).
_LONGEST_DRESS = 4
_DRESS_CHARACTER = r"(?:[^\w\s#]|_)"
_PREFIXES = 4
_PREFIX = rf"(?:(?:[^\w\s]{{1,3}}|\d{{1,3}}[.)]){_INDENT}){{0,{_PREFIXES}}}"

# Characters whose folding is remembered; a text of all there are must not fill the memory.
_MAX_FOLDS = 65_536


class _Folds(dict[int, str]):
    """What each character contributes to the skeleton; empty for characters that no reader sees."""

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
    if not char.isascii() and (dressed := _DRESSED_LETTER.fullmatch(unicodedata.name(char, ""))):
        return (dressed[1] or dressed[2] or dressed[3]).lower()
    folded = unicodedata.normalize("NFKD", char.translate(_LOOK_ALIKES)).casefold().translate(_LOOK_ALIKES)
    folded = "".join(map(_look_alike, folded))
    # Marks of all kinds, and all that is control, format, surrogate, private or unassigned. Unicode takes a capital I
    # for a small l, so the skeleton takes either for the other.
    return "".join(c for c in folded if c != MARK and unicodedata.category(c)[0] not in "MC").replace("l", "i")


def _look_alike(char: str) -> str:
    """The ASCII text, in lower case, that a character is confusable with; the character itself where there is none."""
    if char.isascii():
        return char
    from confusable_homoglyphs.confusables import confusables_data

    # Some small letters are listed in their capital form only.
    for form in (char, char.upper()):
        for candidate in confusables_data.get(form, ()):
            if candidate["c"].isascii() and candidate["c"].strip():
                return str(candidate["c"]).casefold()
    return char


_FOLDS = _Folds()


def _skeleton(text: str) -> str:
    return text.translate(_FOLDS)


def n_visible(text: str) -> int:
    """Count the characters of the skeleton of `text` that are not white space."""
    return len("".join(_skeleton(text).split()))


def in_skeleton(char: str) -> bool:
    """Whether a character contributes to the skeleton; the mark and invisible characters do not."""
    return bool(_FOLDS[ord(char)])


def _positions(text: str) -> Sequence[int]:
    """For each character of the skeleton the position in `text` that it came from, and the length behind the last."""
    positions: list[int] = []
    for position, char in enumerate(text):
        positions.extend([position] * len(_FOLDS[ord(char)]))
    return [*positions, len(text)]


class Escaper:
    """Neutralises a set of delimiters.

    Args:
        lines: delimiters that stand at the start of a line in the template. A leading ``#`` makes a heading
            (found anywhere), a letter or a digit a label (found at the start of a line); other strings are
            found anywhere, and single characters at the start of a line.
        strings: delimiters found anywhere; at least two characters each.

    Attributes:
        reach: within how many visible characters behind a mark it is decided whether that is at a cut.
    """

    def __init__(self, lines: Iterable[str], strings: Iterable[str] = ()) -> None:
        lines, strings = list(lines), list(strings)
        dressed = [n_visible(line) + _LONGEST_DRESS * (len(line.split()) + 3 + _PREFIXES) for line in lines]
        self.reach = max([_LONGEST_PIPED + 4, *dressed, *map(n_visible, strings)])
        headings: set[str] = set()
        # Patterns, and what a text without match hardly ever holds: finding that out is quicker than searching.
        at_line_start: dict[str, str] = {}
        literal: set[str] = set()
        for line in filter(_skeleton, lines):
            if re.match(r"#+\s*\w", line):
                words = _dressed(line.lstrip("#").strip().removesuffix(":").rstrip())
                headings.add(rf"#(?=\s+{words}|{words}\s*:)")
                at_line_start[rf"#(?=\s*{words}{_LINE_END})"] = "#"
            elif len(line) == 1:
                # The mark goes before the character, which is then not the first of its line.
                at_line_start[f"(?={_flexible(line)})"] = _skeleton(line)
            elif line[0].isalnum():
                at_line_start[_label(line)] = next(iter(_skeleton(line[:-1]).split()), "")
            else:
                literal.add(line)
        literal.update(string for string in strings if len(_skeleton(string)) > 1)
        # Each label is searched on its own, since a match may span the beginning of another. All others consume
        # one character, so that a single search finds them all.
        anywhere = "|".join((*sorted(headings), _PIPED_TOKEN, *_literals(literal)))
        self._anywhere = re.compile(anywhere)
        self._at_line_start = [
            (held, re.compile(_LINE_START + pattern)) for pattern, held in sorted(at_line_start.items())
        ]

    def escape(self, text: str) -> str:
        """`text` with one mark inserted at every cut; the same object when there is none."""
        cuts = self.cuts(text)
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
        for cut in self.cuts(text):
            if cut and text[cut - 1] == MARK:
                parts.append(text[start : cut - 1])
                start = cut
        return "".join(parts) + text[start:]

    def cuts(self, text: str) -> list[int]:
        """Positions in `text` before which a mark goes, ascending."""
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
        # Several characters of the skeleton may come from one of the text.
        return list(dict.fromkeys(positions[end] for end in ends))


def _flexible(text: str) -> str:
    """A pattern for the skeleton of `text`, with any white space where it has some."""
    return "".join(_tokens(_skeleton(text)))


def _tokens(skeleton: str) -> tuple[str, ...]:
    return tuple(r"\s+" if part.isspace() else re.escape(part) for part in re.findall(r"\s+|\S", skeleton))


def _dressed(text: str, end: str = ":") -> str:
    """As `_flexible`, with Markdown around the words, of which `end` is no part."""
    dress = rf"(?:(?!{_flexible(end)}){_DRESS_CHARACTER}){{0,{_LONGEST_DRESS}}}"
    return dress + rf"{dress}\s+{dress}".join(map(_flexible, text.split())) + dress


def _label(line: str) -> str:
    """A pattern that ends before the label's last character."""
    body, last = line[:-1], line[-1]
    if last.isalnum():
        return rf"{_PREFIX}{_flexible(body)}(?={_flexible(last)}(?!\w))"
    return rf"{_PREFIX}{_dressed(body.rstrip(), last)}\s*(?={_flexible(last)})"


def _literals(strings: Iterable[str]) -> list[str]:
    """Patterns that end behind the first character of each string, one pattern per first character.

    A tokenizer may have a thousand special tokens, and a text a million first characters of them, so the rests
    form a tree.
    """
    rests: dict[str, set[tuple[str, ...]]] = {}
    for string in strings:
        # The first character that shows; it may be several in the skeleton.
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
