"""Normalising text for comparison, and making it valid Unicode."""

from __future__ import annotations

import unicodedata
from typing import Any


def normalise(text: str) -> str:
    """Normalise ``text`` for comparison: two texts count as the same if their normalised forms are equal.

    Compatibility characters are unified (Unicode NFKC), case is folded, every run of whitespace becomes
    one space, and the ends are stripped. Applying it twice changes nothing.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Case folding can undo NFKC, and the other way round: Unicode 3.13, D146.
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKC", folded).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def valid_text(text: str) -> str:
    r"""Make `text` valid Unicode: join surrogate pairs, and replace each lone surrogate by U+FFFD.

    JSON escapes such as ``\\ud83d`` put half a surrogate pair into a string, which cannot be encoded.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid_values(value: Any) -> Any:
    """JSON values with `valid_text` applied to every text and key in them."""
    if isinstance(value, str):
        return valid_text(value)
    if isinstance(value, list):
        return [valid_values(part) for part in value]
    if isinstance(value, dict):
        return {valid_values(name): valid_values(part) for name, part in value.items()}
    return value


class ValidText:
    """Applies `valid_text` to a stream: half a surrogate pair at the end of a chunk is held back for the other half."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, chunk: str) -> str:
        """Take the next chunk; return the valid text that is certain by now."""
        text = self._held + chunk
        self._held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return valid_text(text[: len(text) - len(self._held)])

    def finish(self) -> str:
        """Return U+FFFD if half a surrogate pair is still held back."""
        held, self._held = self._held, ""
        return valid_text(held)
