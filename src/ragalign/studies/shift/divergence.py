"""Kullback-Leibler divergence between two models' next-token distributions, in nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragalign.generation.distributions import Distributions

# Probabilities are sums of float32 values; a smaller rest can be a rounding error.
_LEAST = 1e-6


def divergences(aligned: Distributions, base: Distributions) -> NDArray[np.float64]:
    """KL(aligned || base) at each position, float64 [t].

    With whole vocabularies this is the exact divergence. With only the most probable tokens it is the divergence of
    coarser distributions, in which all tokens without a known probability in both share one bucket.
    Merging outcomes never increases a divergence (the log sum inequality), so this is a lower bound.
    """
    if aligned.dense is not None and base.dense is not None:
        # Rows can be padded to different widths; padding has no probability.
        width = min(aligned.dense.shape[1], base.dense.shape[1])
        first, second = aligned.dense[:, :width].astype(np.float64), base.dense[:, :width].astype(np.float64)
        return _clean((np.exp(first) * (first - second)).sum(axis=1))
    return np.array([_coarse(aligned, base, place) for place in range(len(aligned))], dtype=np.float64)


def _coarse(aligned: Distributions, base: Distributions, place: int) -> float:
    first, second = _known(aligned, place), _known(base, place)
    common = sorted(first.keys() & second.keys())
    p, q = (np.array([known[id_] for id_ in common], dtype=np.float64) for known in (first, second))
    total = float((np.exp(p) * (p - q)).sum())
    p_rest = max(1.0 - float(np.exp(p).sum()), 0.0)
    # A larger rest of the base model lowers the bound, which keeps it valid.
    q_rest = max(1.0 - float(np.exp(q).sum()), _LEAST)
    if p_rest > _LEAST:
        total += p_rest * (np.log(p_rest) - np.log(q_rest))
    return max(total, 0.0)


def _known(shown: Distributions, place: int) -> dict[int, float]:
    if shown.dense is not None:
        return dict(enumerate(shown.dense[place].tolist()))
    known = dict(zip(shown.top_ids[place].tolist(), shown.top_logprobs[place].tolist(), strict=True))
    known[int(shown.ids[place])] = float(shown.logprobs[place])
    return known


def _clean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Clip values that rounding made negative."""
    return np.maximum(values, 0.0)
