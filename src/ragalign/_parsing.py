"""JSON and TOML from outside: whatever is wrong with a text is a ValueError, deep nesting included."""

from __future__ import annotations

import json
import tomllib
from typing import Any

_TOO_DEEP = "it is nested too deeply"


def parse_json(text: str | bytes) -> Any:
    """`json.loads`.

    Raises:
        ValueError: the text is not valid JSON, not UTF-8, or nested too deeply for Python's parser.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_toml(text: str) -> dict[str, Any]:
    """`tomllib.loads`.

    Raises:
        ValueError: the text is not valid TOML, or nested too deeply for Python's parser.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
