"""Checks of option values; each returns the value or raises `ConfigError`."""

from __future__ import annotations

import math

from ragalign.errors import ConfigError


def whole(owner: str, name: str, value: object, low: int = 1) -> int:
    """Check that ``value`` is a whole number of at least ``low``.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{owner}: {name} must be a whole number of at least {low}, not {value!r}")
    return value


def number(owner: str, name: str, value: object, low: float, high: float = math.inf) -> float:
    """Check that ``value`` is a finite number in [low, high].

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{owner}: {name} must be a number, not {value!r}")
    if not low <= value <= high:
        bounds = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
        raise ConfigError(f"{owner}: {name} must be {bounds}, not {value!r}")
    return float(value)
