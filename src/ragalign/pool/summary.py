"""Statistics on the length of texts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles of text lengths in whitespace-separated words, with linear interpolation between ranks."""

    min: float
    p25: float
    median: float
    p75: float
    p95: float
    max: float
    mean: float


def word_lengths(texts: pa.ChunkedArray) -> Lengths:
    """Length percentiles of a column with at least one text."""
    counts = np.fromiter((len(text.as_py().split()) for text in texts), dtype=np.int64, count=len(texts))
    low, p25, median, p75, p95, high = np.percentile(counts, [0, 25, 50, 75, 95, 100]).tolist()
    return Lengths(low, p25, median, p75, p95, high, float(counts.mean()))
