"""Parses scores and JSON in judges' replies; shared by several protocols."""

from __future__ import annotations

import json
import math
from typing import Any

from ragalign._parsing import parse_json
from ragalign.judging.base import UnreadableReplyError


def finite(text: object, what: str) -> float:
    """Parse a finite number from text or JSON.

    Raises:
        UnreadableReplyError: it is not a finite number.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise UnreadableReplyError(f"{what} is not a number: {_short(text)}") from None
    if not math.isfinite(value):
        raise UnreadableReplyError(f"{what} is not finite: {_short(text)}")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        UnreadableReplyError: the text is not JSON, or not an object.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UnreadableReplyError(f"the reply is not JSON: {reason}") from None
    if not isinstance(value, dict):
        raise UnreadableReplyError(f"the reply is JSON but not an object: {_short(value)}")
    return value


def in_range(value: float, low: float, high: float, what: str) -> float:
    """Check that a score is on its scale, and return it.

    Raises:
        UnreadableReplyError: it is off the scale.
    """
    if not low <= value <= high:
        raise UnreadableReplyError(f"{what} {value:g} is not between {low:g} and {high:g}")
    return value


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
