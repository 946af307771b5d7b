"""Determinantal point process: selects a set that is relevant and diverse."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.greedy import GreedyRetriever
from ragalign.retrieval.options import number

# A candidate with less than this share of its length outside the span of those selected adds only rounding errors.
_NOTHING_NEW = 1e-10


class DppRetriever(GreedyRetriever):
    """Greedy selection of the set with the highest determinant of its kernel.

    The kernel of candidates i and j is ``q_i * (1 + cosine_ij) / 2 * q_j`` with ``q_i = exp(r_i / (2 * scale))`` and
    relevance ``r_i = (1 + cosine to the query) / 2``. Each step takes the candidate that raises the log-determinant
    most; candidates that add nothing, such as exact copies, come last, by relevance.

    `Hit.score` is the gain in log-determinant at the time of selection; it never rises from rank to rank.

    Source: Chen, Zhang and Zhou (2018), "Fast Greedy MAP Inference for Determinantal Point Process to Improve
    Recommendation Diversity", NeurIPS (algorithm); Ye et al. (2023), "Compositional Exemplars for In-context
    Learning", ICML (kernel; OpenICL's scale is 0.1 and its number of candidates 100).
    """

    name: ClassVar[str] = "dpp"

    def __init__(
        self, index: Index, *, scale: float = 0.1, first: Retriever | None = None, n_candidates: int = 100
    ) -> None:
        """Set the trade-off.

        Args:
            index: the index to search.
            scale: above 0; small values favour relevance, large values diversity.
            first: the retriever of the candidates; dense by default.
            n_candidates: number of candidates; raised to k if lower.
        """
        super().__init__(index, first=first, n_candidates=n_candidates)
        self._scale = number("dpp", "scale", scale, low=1e-6)

    def select(
        self,
        relevance: NDArray[np.float64],
        similarity: NDArray[np.float64],
        available: NDArray[np.bool_],
        k: int,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """See `GreedyRetriever.select`."""
        m, c = relevance.shape
        rows = np.arange(m)
        scores = np.empty((m, k))
        columns = np.empty((m, k), dtype=np.int64)
        left = available.copy()
        kernel = (1 + similarity) / 2
        # Quality only scales rows and columns, so it is a separate term in the logarithm: no exp, no overflow.
        quality = (1 + relevance) / 2 / self._scale
        # The known rows of the Cholesky factor, and the rest of each candidate outside their span.
        factor = np.zeros((m, k, c))
        rest = np.diagonal(kernel, axis1=1, axis2=2).copy()
        for step in range(k):
            value = np.where(left, quality + np.log(np.maximum(rest, _NOTHING_NEW)), -np.inf)
            best = value.argmax(axis=1)
            scores[:, step] = value[rows, best]
            columns[:, step] = best
            left[rows, best] = False
            known = factor[:, :step]
            projected = np.matmul(known[rows, :, best][:, None, :], known)[:, 0]
            length = rest[rows, best]
            new = (kernel[rows, best] - projected) / np.sqrt(np.maximum(length, _NOTHING_NEW))[:, None]
            factor[:, step] = np.where(length[:, None] > _NOTHING_NEW, new, 0)
            rest -= factor[:, step] ** 2
        return scores, columns
