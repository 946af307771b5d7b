"""Distributions of scores and lengths, binned alike for all models of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Scores with at most this many distinct values get a bin each.
_MOST_VALUES = 21
_N_BINS = 20
# Lengths have a long tail: the last bin holds the longest two percent.
_TAIL = 0.98


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often values occur.

    Attributes:
        name: the metric's name, or ``n_characters``.
        label: the display name.
        unit: the unit of the values.
        edges: n_bins + 1 edges; a bin includes its lower edge, the last bin both.
        values: the value of each bin where every bin holds a single value; otherwise empty.
        is_open: whether the last bin holds everything above its lower edge.
        counts: the counts per bin of each model.
    """

    name: str
    label: str
    unit: str
    edges: tuple[float, ...]
    values: tuple[float, ...]
    is_open: bool
    counts: Mapping[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "edges": list(self.edges),
            "values": list(self.values),
            "is_open": self.is_open,
            "counts": {name: list(counts) for name, counts in self.counts.items()},
        }


def distribution(
    name: str,
    label: str,
    unit: str,
    observed: Mapping[str, Sequence[float]],
    *,
    scale: tuple[float, float] | None = None,
    has_tail: bool = False,
) -> Distribution | None:
    """Count values in bins that fit all models; None without values.

    Args:
        name: see `Distribution`.
        label: see `Distribution`.
        unit: see `Distribution`.
        observed: the values of each model.
        scale: the ends of a scale that is shown in full.
        has_tail: whether the last bin is open.
    """
    everything = np.array([value for values in observed.values() for value in values], dtype=np.float64)
    if not len(everything):
        return None
    values = np.unique(everything)
    if scale is not None:
        values = _whole_scale(values, scale)
    is_open = False
    if len(values) <= _MOST_VALUES and not has_tail:
        middles = (values[1:] + values[:-1]) / 2
        edges = np.array([values[0] - 0.5, *middles, values[-1] + 0.5])
        single = tuple(map(float, values))
    else:
        # Bins need a width even if nearly all values are 0, such as the lengths of empty answers.
        top = max(1.0, float(np.quantile(everything, _TAIL))) if has_tail else float(values[-1])
        is_open = bool(top < values[-1])
        edges = _round_edges(0.0 if has_tail else float(values[0]), top)
        single = ()
    counts = {model: tuple(map(int, _count(values, edges))) for model, values in observed.items()}
    return Distribution(name, label, unit, tuple(map(float, edges)), single, is_open, counts)


def _whole_scale(values: NDArray[np.float64], scale: tuple[float, float]) -> NDArray[np.float64]:
    """All whole points of a scale, or all half points if some are used; other values are returned unchanged."""
    low, high = min(scale[0], values[0]), max(scale[1], values[-1])
    step = next((step for step in (1.0, 0.5) if np.array_equal(values, np.round(values / step) * step)), None)
    return values if step is None else np.arange(low, high + step / 2, step)


def _count(values: Sequence[float], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    found = np.clip(np.searchsorted(edges, np.asarray(values, dtype=np.float64), side="right") - 1, 0, len(edges) - 2)
    return np.bincount(found.astype(np.int64), minlength=len(edges) - 1)


def _round_edges(low: float, high: float) -> NDArray[np.float64]:
    """About twenty bins whose width is 1, 2 or 5 times a power of ten."""
    rough = (high - low) / _N_BINS
    power = 10.0 ** np.floor(np.log10(rough))
    width = power * next(step for step in (1, 2, 5, 10) if step * power >= rough * 0.999)
    start = np.floor(low / width)
    n = int(np.ceil(high / width - 1e-9) - start)
    return np.asarray((start + np.arange(n + 1)) * width)
