"""Cross-encoder reranking: retrieve candidates, score each together with the query, keep the best k."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ragalign._optional import require
from ragalign.encoders.locate import locate
from ragalign.encoders.quiet import quiet
from ragalign.errors import ConfigError, DataError
from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.dense import DenseRetriever
from ragalign.retrieval.options import whole
from ragalign.retrieval.ranking import Ranking
from ragalign.retrieval.texts import indexed_texts

DEFAULT_MODEL = "cross-encoder/ms-marco-MiniLM-L6-v2"


class RerankRetriever(Retriever):
    """Reorders the candidates of a first stage with a cross-encoder.

    `Hit.score` is the result of `sentence_transformers.CrossEncoder.predict`. Equal scores keep the order of the first
    stage.
    """

    name: ClassVar[str] = "rerank"

    def __init__(
        self,
        index: Index,
        *,
        model: str | Path = DEFAULT_MODEL,
        first: Retriever | None = None,
        n_candidates: int = 100,
        batch_size: int = 32,
        device: str | None = None,
    ) -> None:
        """Set the stages; the model is loaded on first use.

        Args:
            index: the index to search; the model scores its text form.
            model: a cross-encoder with one output, as Hub id or local folder.
            first: the retriever of the candidates; dense by default.
            n_candidates: number of candidates; raised to k if lower.
            batch_size: pairs per forward pass.
            device: such as ``"cpu"`` or ``"cuda"``; None chooses automatically.
        """
        super().__init__(index.pool, index)
        self._index = index
        self._name = str(model)
        self._first = first if first is not None else DenseRetriever(index)
        self._check_stage(self._first)
        self._n_candidates = whole("rerank", "n_candidates", n_candidates)
        self._batch_size = whole("rerank", "batch_size", batch_size)
        self._device = device

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`.

        Raises:
            ConfigError: the model cannot be loaded, or has more than one output.
            DataError: a query cannot be tokenized, such as one with a lone surrogate.
        """
        positions = self._first.rank(batch, max(k, self._n_candidates)).positions
        scores = np.full(positions.shape, -np.inf)
        here = positions >= 0
        rows, _ = np.nonzero(here)
        distinct, which = np.unique(positions[here], return_inverse=True)
        texts = indexed_texts(self._index, self.pool.take(distinct))
        pairs = [(batch.texts[row], texts[at]) for row, at in zip(rows, which, strict=True)]
        if pairs:
            # Score all pairs of the batch in one call: the model sorts them by length.
            model = self._model
            try:
                scores[here] = model.predict(pairs, batch_size=self._batch_size, show_progress_bar=False)
            except (TypeError, UnicodeEncodeError) as error:
                raise DataError(f"a query cannot be scored by the cross-encoder {self._name!r}: {error}") from None
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Ranking(np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1))

    @cached_property
    def _model(self) -> Any:
        located = locate(self._name)
        with quiet():
            cross_encoder = require("sentence_transformers", "reranking").CrossEncoder
            try:
                if located.folder is not None:
                    model = cross_encoder(str(located.folder), device=self._device, local_files_only=True)
                else:
                    model = cross_encoder(located.id, revision=located.commit, device=self._device)
            except Exception as error:
                # Foreign weights and code can raise anything; show one line of it.
                reason = (str(error).strip() or repr(error)).partition("\n")[0]
                raise ConfigError(f"rerank: cannot load the cross-encoder {self._name!r}: {reason}") from error
        if model.num_labels != 1:
            raise ConfigError(
                f"rerank: the cross-encoder {self._name!r} has {model.num_labels} outputs; use one with a single "
                "relevance score"
            )
        return model
