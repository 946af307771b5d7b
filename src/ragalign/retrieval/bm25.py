"""Lexical retrieval with BM25, using the bm25s package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.options import number
from ragalign.retrieval.ranking import Ranking, top
from ragalign.retrieval.texts import indexed_texts
from ragalign.retrieval.words import words
from ragalign.text import normalise


class Bm25Retriever(Retriever):
    """BM25 over the index's text form, split into words by `ragalign.retrieval.words.words`.

    The variant is Lucene's: the sum over the query's words, repeated words included, of
    ``log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))``.

    `Hit.score` is this sum. Demonstrations that share no word with the query are not returned, so there can be fewer
    than k hits. Equal scores are ordered by position in the pool.

    Source: Kamphuis et al. (2020), "Which BM25 Do You Mean?", ECIR; Lù (2024), "BM25S", arXiv:2407.03618, also for
    the default parameters.
    """

    name: ClassVar[str] = "bm25"
    reason_for_no_hit: str = "no allowed demonstration shares a word with them"

    def __init__(
        self, index: Index, *, k1: float = 1.5, b: float = 0.75, stopwords: str | Sequence[str] | None = "english"
    ) -> None:
        """Set the parameters; words are counted on first use.

        Args:
            index: the index to search.
            k1: saturation of repeated words.
            b: weight of the length normalisation, in [0, 1].
            stopwords: words to ignore: a language known to bm25s, a list, or None.
        """
        super().__init__(index.pool, index)
        self._index = index
        self._k1 = number("bm25", "k1", k1, low=0)
        self._b = number("bm25", "b", b, low=0, high=1)
        if isinstance(stopwords, list | tuple) and all(isinstance(word, str) for word in stopwords):
            stopwords = [normalise(word) for word in stopwords]
        elif stopwords is not None and not isinstance(stopwords, str):
            raise ConfigError(f"bm25: stopwords must be a language, a list of words or None, not {stopwords!r}")
        try:
            known = require("bm25s.tokenization", "BM25 retrieval").Tokenizer(stopwords=stopwords).stopwords
        except ValueError as error:
            raise ConfigError(f"bm25: stopwords: {error}") from None
        self._stopwords = frozenset(known)

    def rank(self, batch: QueryBatch, k: int) -> Ranking:
        """See `Retriever.rank`."""

        def search(rows: NDArray[np.int64], depth: int) -> Ranking:
            out = Ranking.empty(len(rows), depth)
            for i, row in enumerate(rows):
                scores = self._scores(batch.texts[row])
                shared = scores > 0 if batch.allowed is None else (scores > 0) & batch.allowed
                positions = top(scores, depth, shared)
                out.scores[i, : len(positions)] = scores[positions]
                out.positions[i, : len(positions)] = positions
            return out

        return batch.survivors(k, search)

    def _scores(self, text: str) -> NDArray[np.float32]:
        if self._model is None:
            return np.zeros(len(self.pool), dtype=np.float32)
        scores: NDArray[np.float32] = self._model.get_scores_from_ids(self._model.get_tokens_ids(self._words(text)))
        return scores

    @cached_property
    def _model(self) -> Any:
        """The bm25s model; None if the pool has no words, which bm25s does not support."""
        bm25s = require("bm25s", "BM25 retrieval")
        vocabulary: dict[str, int] = {}
        documents = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in self._words(text)]
            for text in indexed_texts(self._index)
        ]
        if not vocabulary:
            return None
        model = bm25s.BM25(k1=self._k1, b=self._b, method="lucene")
        counted = bm25s.tokenization.Tokenized(ids=documents, vocab=vocabulary)
        model.index(counted, create_empty_token=False, show_progress=False)
        return model

    def _words(self, text: str) -> list[str]:
        return [word for word in words(text) if word not in self._stopwords]
