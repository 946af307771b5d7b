"""Checks that no text can imitate a template's own strings once it is neutralised."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import product

from ragalign.errors import ConfigError
from ragalign.templates.escaping import MARK, escaper_for


def check_delimiters(
    name: str,
    strings: tuple[str, str, str, str],
    protect: Iterable[str],
    delimiters: tuple[tuple[str, ...], tuple[str, ...]],
) -> None:
    """Reject a template whose delimiters cannot be neutralised safely.

    Args:
        name: the template's name, for messages.
        strings: its opening, middle, closing and cue.
        protect: its further delimiters.
        delimiters: the delimiters in all of these: at the start of a line, and anywhere.

    Raises:
        ConfigError: a text could imitate one of the strings.
    """
    opening, middle, closing, cue = strings
    between = closing + opening
    if between.startswith(middle) or middle.startswith(between) or closing.endswith(cue):
        raise ConfigError(f"template {name!r}: 'middle' or 'cue' looks like the end of an answer; change it")
    if any(MARK in string for string in (*strings, *protect)):
        raise ConfigError(
            f"template {name!r}: delimiters must not contain backslashes, which neutralising inserts; "
            "use other characters"
        )
    found = _imitable_string(delimiters, opening, middle, closing)
    if found is not None:
        raise ConfigError(
            f"template {name!r}: a text could imitate {found!r}; put it on its own line, with more than one "
            "character and without repetition, such as '### Answer:'"
        )


@lru_cache(maxsize=256)
def _imitable_string(
    delimiters: tuple[tuple[str, ...], tuple[str, ...]], opening: str, middle: str, closing: str
) -> str | None:
    """The string of a template that a neutralised text could imitate; None if that is proven impossible.

    A user's text is followed by `middle`, and an answer by `closing + opening`. A neutralised text contains a copy of
    such a string only if no cut is inside the copy, since the strings have no mark. So every copy must have a cut, and
    so must every prefix that a text can end with, if the template can continue it to the whole string.
    """
    escaper = escaper_for(*delimiters)
    ends = (middle, closing + opening)
    neighbours = ("", "a", "\n", " ", "#", "`", "\n\n")
    for string in ends:
        parts = [string]
        for n in range(1, len(string)):
            rest = string[n:]
            # A closing is followed by the end or the next turn; the other two by arbitrary text.
            if closing.startswith(rest) or any(end.startswith(rest) or rest.startswith(end) for end in ends):
                parts.append(string[:n])
        for part in parts:
            followed = neighbours if part == string else ("",)
            for before, after in product(neighbours, followed):
                cuts = escaper.cuts(before + part + after)
                if not any(len(before) < cut < len(before + part) for cut in cuts):
                    return string
    return None
