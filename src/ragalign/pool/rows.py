"""Rows with their numbers, and problems of rows that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why a row cannot be read."""

    reason: str


Rows = Iterator[tuple[int, dict[str, Any] | Problem]]


def escaped_byte(text: str) -> int | None:
    """The first byte that surrogateescape kept in ``text``, if any."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ord(text[error.start]) & 0xFF
    return None
