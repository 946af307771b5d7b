"""A figure with its uncertainty, and how scored observations are grouped by prompt."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError

Values: TypeAlias = Sequence[float | None] | NDArray[np.float64]
Prompts: TypeAlias = Sequence[Hashable] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure with its interval.

    Attributes:
        value: the figure; NaN where nothing was scored.
        low, high: the interval's ends, at level `confidence`.
        n: scored observations behind the figure.
        n_unscored: observations left out because they have no score.
        method: how the interval was computed.
        n_prompts: distinct prompts among the scored observations: the independent units.
        confidence: the interval's nominal coverage.
    """

    value: float
    low: float
    high: float
    n: int
    n_unscored: int
    method: str
    n_prompts: int = 0
    confidence: float = 0.95

    def scaled(self, factor: float) -> Estimate:
        """The same figure in another unit, such as percent; a negative factor swaps the ends."""
        ends = (self.low * factor, self.high * factor)
        low, high = ends if factor >= 0 else ends[::-1]
        return replace(self, value=self.value * factor, low=low, high=high)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; numbers that JSON cannot hold (NaN, infinity) become None."""
        return {
            "value": finite_or_none(self.value),
            "low": finite_or_none(self.low),
            "high": finite_or_none(self.high),
            "n": self.n,
            "n_unscored": self.n_unscored,
            "n_prompts": self.n_prompts,
            "confidence": self.confidence,
            "method": self.method,
        }


@dataclass(frozen=True, slots=True)
class Grouped:
    """Scored observations with the prompt each belongs to.

    Attributes:
        values: scored observations, float64 [n].
        codes: the number of each observation's prompt, int64 [n], from 0 to `n_prompts` - 1.
        n_prompts: prompts with at least one scored observation.
        n_unscored: observations without a score.
    """

    values: NDArray[np.float64]
    codes: NDArray[np.int64]
    n_prompts: int
    n_unscored: int

    @property
    def n(self) -> int:
        """Scored observations."""
        return len(self.values)

    @property
    def counts(self) -> NDArray[np.float64]:
        """Scored observations of each prompt, float64 [n_prompts]."""
        return np.bincount(self.codes, minlength=self.n_prompts).astype(np.float64)

    def totals(self, values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Sums over each prompt's observations, float64 [n_prompts]."""
        weights = self.values if values is None else values
        # Without observations bincount ignores its weights and returns integers.
        return np.bincount(self.codes, weights=weights, minlength=self.n_prompts).astype(np.float64)


def group(values: Values, prompts: Prompts | None = None) -> Grouped:
    """Leave out unscored observations (None or NaN) and number the prompts of the rest.

    Args:
        values: one number per observation.
        prompts: the prompt of each observation; by default each observation is a prompt of its own.

    Raises:
        DataError: the lengths differ, or a value is infinite or not a number.
    """
    numbers = as_numbers(values)
    if prompts is not None and len(prompts) != len(numbers):
        raise DataError(f"{len(numbers)} values but {len(prompts)} prompts: give one prompt per value")
    is_scored = ~np.isnan(numbers)
    kept = numbers[is_scored]
    if prompts is None:
        codes, n_prompts = np.arange(len(kept), dtype=np.int64), len(kept)
    else:
        known: dict[Hashable, int] = {}
        codes = np.fromiter(
            (known.setdefault(prompt, len(known)) for prompt, ok in zip(prompts, is_scored, strict=True) if ok),
            dtype=np.int64,
            count=len(kept),
        )
        n_prompts = len(known)
    return Grouped(kept, codes, n_prompts, n_unscored=len(numbers) - len(kept))


def as_numbers(values: Values) -> NDArray[np.float64]:
    """Values as float64 [n], None as NaN.

    Raises:
        DataError: a value is infinite or not a number, or the values are not one-dimensional.
    """
    try:
        numbers = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("statistics need one number (or None for unscored) per observation") from None
    if numbers.ndim != 1:
        raise DataError(f"statistics need one number per observation, not an array of shape {numbers.shape}")
    if np.isinf(numbers).any():
        raise DataError("an observation is infinite: statistics need finite numbers, or None for unscored")
    return numbers


def check_confidence(confidence: float) -> None:
    """Reject a confidence level outside (0, 1).

    Raises:
        ConfigError: it is not strictly between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, such as 0.95, not {confidence}")


def finite_or_none(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON cannot hold."""
    return value if math.isfinite(value) else None
