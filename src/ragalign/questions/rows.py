"""Values in the rows of users' files, and errors about them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}


class BadRowError(Exception):
    """A row that cannot be used: the reason, and advice where there is any better than "correct it"."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


def is_filled(row: Mapping[str, Any], name: str, metadata: Collection[str] = ()) -> bool:
    """Whether a field is not metadata and has a value that is not null, NaN, blank or empty."""
    return name not in metadata and not is_empty(row.get(name))


def is_empty(value: object) -> bool:
    """Whether a value is null, NaN, blank text or an empty container."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The text in a field.

    Raises:
        BadRowError: the field is missing or not text.
    """
    value = row.get(name)
    if isinstance(value, str):
        return value
    if name not in row:
        raise missing(name, row)
    raise BadRowError(f"the field {name!r} is {kind(value)}, not text")


def missing(name: str, row: Mapping[str, Any]) -> BadRowError:
    """The error for a field that a row lacks."""
    return BadRowError(f"the row has no field {name!r} (its fields: {field_names(row)})")


def field_names(row: Mapping[str, Any]) -> str:
    """A row's field names, for messages."""
    names = [str(name) for name in row]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def kind(value: object) -> str:
    """The type of a JSON value, for messages."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)
