"""Formatting numbers: digits, units and intervals."""

from __future__ import annotations

import math

from ragalign.statistics import Estimate

NONE = "–"


def number(value: float | None, unit: str) -> str:
    """A figure without its unit: percent with one decimal, lengths with none, scores with two."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    digits = {"%": 1, "words": 0, "characters": 0}.get(unit, 2)
    text = f"{abs(value):,.{digits}f}"
    is_zero = float(text.replace(",", "")) == 0
    return text if value >= 0 or is_zero else f"−{text}"


def signed(value: float, unit: str) -> str:
    """A difference, with its sign."""
    text = number(value, unit)
    return text if value <= 0 or math.isnan(value) or text.strip("0.") == "" else f"+{text}"


def interval(estimate: Estimate, unit: str) -> str:
    """The ends of an interval; empty without one."""
    if math.isnan(estimate.low):
        return ""
    return f"{number(estimate.low, unit)} to {number(estimate.high, unit)}"


def p_value(value: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}"
