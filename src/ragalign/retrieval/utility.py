"""Reranking by predicted utility, and choosing a set that stops when the next demonstration is not worth its tokens."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch, unit
from ragalign.retrieval.calibration import Calibration
from ragalign.retrieval.dense import DenseRetriever
from ragalign.retrieval.options import number, whole
from ragalign.retrieval.ranking import Ranking
from ragalign.retrieval.texts import texts_in_form

# Words per token of common tokenizers on English text, for prices.
_TOKENS_PER_WORD = 1.3


class UtilityRetriever(Retriever):
    """Reorders the candidates of a first stage by the gain that an encoder predicts for them.

    The encoder was trained by `ragalign utility train` on measured gains: how much likelier a demonstration makes a
    good answer. `Hit.score` is the predicted gain in nats per token of the answer.

    With `token_cost`, a set is chosen instead: one at a time, the demonstration that adds most, until the next adds
    less than its tokens cost. The i-th demonstration adds its gain x (1 - its highest cosine to those chosen) / i,
    since alike demonstrations say the same and each further one helps less; this is then `Hit.score`.
    """

    name: ClassVar[str] = "utility"

    def __init__(
        self,
        index: Index,
        *,
        model: str | Path | None = None,
        first: Retriever | None = None,
        n_candidates: int = 100,
        token_cost: float | None = None,
        device: str | None = None,
    ) -> None:
        """Set the stages; an encoder other than the index's is loaded on first use.

        Args:
            index: the index to search.
            model: the folder of a trained encoder; None means the index's own.
            first: the retriever of the candidates; dense by default.
            n_candidates: number of candidates; raised to k if lower.
            token_cost: cost of a token of a demonstration, in nats per token of the answer, such as 0.0001; 0 stops at
                the first demonstration that adds nothing. None always returns k.
            device: such as ``"cpu"`` or ``"cuda"``; None chooses automatically.
        """
        super().__init__(index.pool, index)
        self._index = index
        self._name = str(model) if model is not None else index.encoder.id
        self._model = model
        self._first = first if first is not None else DenseRetriever(index)
        self._check_stage(self._first)
        self._n_candidates = whole("utility", "n_candidates", n_candidates)
        self._token_cost = None if token_cost is None else number("utility", "token_cost", token_cost, low=0)
        self._device = device
        if token_cost is not None:
            self.reason_for_no_hit = "no demonstration is predicted to gain more than its tokens cost"
        if not Path(self._name).is_dir():
            raise ConfigError(
                f"utility: {self._name!r} is not a folder of a trained encoder; name one (model), as made by "
                "`ragalign utility train`"
            )
        self._calibration = Calibration.read(Path(self._name))

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`. With `token_cost`, a row can end before k."""
        positions = self._first.rank(batch, max(k, self._n_candidates)).positions
        distinct, which = np.unique(positions, return_inverse=True)
        vectors = self._vectors(distinct)[which.reshape(positions.shape)]
        queries = unit(batch.vectors(self._encoder))
        cosines = np.einsum("mnd,md->mn", vectors, queries).astype(np.float64)
        gains = self._calibration.intercept + self._calibration.slope * cosines
        gains[positions < 0] = -np.inf
        if self._token_cost is not None:
            return self._sets(positions, gains, vectors, k)
        order = np.argsort(-gains, axis=1, kind="stable")[:, :k]
        return Ranking(np.take_along_axis(gains, order, axis=1), np.take_along_axis(positions, order, axis=1))

    def _sets(
        self, positions: NDArray[np.int64], gains: NDArray[np.float64], vectors: NDArray[np.float32], k: int
    ) -> Ranking:
        out = Ranking.empty(len(positions), k)
        costs = (self._token_cost or 0.0) * self._n_tokens[np.maximum(positions, 0)]
        for row in range(len(positions)):
            left = positions[row] >= 0
            closest = np.zeros(positions.shape[1])
            for step in range(k):
                added = np.where(gains[row] > 0, gains[row] * (1 - closest), gains[row]) / (step + 1)
                worth = np.where(left, added - costs[row], -np.inf)
                best = int(worth.argmax()) if len(worth) else 0
                if not len(worth) or not worth[best] > 0:
                    break
                out.positions[row, step], out.scores[row, step] = positions[row, best], added[best]
                left[best] = False
                closest = np.maximum(closest, np.clip(vectors[row] @ vectors[row, best], 0, 1))
        return out

    def _vectors(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors of the demonstrations at these positions; -1 gives those at 0, which nobody reads."""
        there = np.maximum(positions, 0)
        same_text = self._calibration.text == self._index.manifest.text
        if same_text and self._encoder.fingerprint == self._index.encoder.fingerprint:
            return unit(self._index.vectors[there])
        texts = texts_in_form(self._calibration.text, [self.pool[int(position)] for position in there])
        return unit(self._encoder.encode(texts))

    @cached_property
    def _encoder(self) -> Encoder:
        if self._model is None:
            return self._index.encoder
        return Encoder.load(self._model, device=self._device)

    @cached_property
    def _n_tokens(self) -> NDArray[np.float64]:
        """Roughly the tokens of each demonstration."""
        words = [
            len(first.split()) + len(second.split())
            for first, second in zip(self.pool.instructions, self.pool.responses, strict=True)
        ]
        return _TOKENS_PER_WORD * np.array(words, dtype=np.float64)
