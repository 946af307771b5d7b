"""Lexical retrieval with BM25, through the bm25s package."""

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
from ragalign.retrieval.batch import Batch
from ragalign.retrieval.options import number
from ragalign.retrieval.ranking import Ranking, top
from ragalign.retrieval.texts import indexed_texts
from ragalign.text import normalise

# Single characters count as words: "C" and "R" are what a question may be about.
_WORD = r"(?u)\b\w+\b"


class Bm25Retriever(Retriever):
    """BM25 over the index's text form, normalised (`ragalign.text.normalise`) and split into words.

    The variant is Lucene's: the sum over the query's words, repeated ones counted again, of
    ``log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + k1 * (1 - b + b * length / mean length))``.

    `Hit.score` is that sum; 0 means that no word is shared. Equal scores are ordered by position in the pool, so
    that k demonstrations come back, deterministically, even where fewer share a word with the query.

    Source: Kamphuis et al. (2020), "Which BM25 Do You Mean?", ECIR; Lù (2024), "BM25S", arXiv:2407.03618, also for
    the default parameters.
    """

    name: ClassVar[str] = "bm25"
    no_match: ClassVar[float | None] = 0.0

    def __init__(
        self, index: Index, *, k1: float = 1.5, b: float = 0.75, stopwords: str | Sequence[str] | None = "english"
    ) -> None:
        """Set up the parameters; the words are counted on first use.

        Args:
            index: where the demonstrations are.
            k1: saturation of repeated words.
            b: how much length counts, in [0, 1].
            stopwords: words to leave out: a language known to bm25s, a list, or None for none.
        """
        super().__init__(index.pool, index)
        self._index = index
        self._k1 = number("bm25", "k1", k1, low=0)
        self._b = number("bm25", "b", b, low=0, high=1)
        if isinstance(stopwords, list | tuple) and all(isinstance(word, str) for word in stopwords):
            stopwords = [normalise(word) for word in stopwords]
        elif stopwords is not None and not isinstance(stopwords, str):
            raise ConfigError(f"bm25: stopwords must be a language, a list of words or nothing, not {stopwords!r}")
        self._stopwords = stopwords
        self._words([], return_ids=False)  # refuses an unknown language now rather than at the first query

    def rank(self, batch: Batch, k: int) -> Ranking:
        """See `Retriever.rank`."""

        def search(rows: NDArray[np.int64], depth: int) -> Ranking:
            out = Ranking.empty(len(rows), depth)
            for i, words in enumerate(self._words([batch.texts[row] for row in rows], return_ids=False)):
                scores = self._scores(words)
                positions = top(scores, depth, batch.allowed)
                out.scores[i] = scores[positions]
                out.positions[i] = positions
            return out

        return batch.survivors(k, search)

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        if self._model is None:
            return np.zeros(len(self.pool), dtype=np.float32)
        scores: NDArray[np.float32] = self._model.get_scores_from_ids(self._model.get_tokens_ids(words))
        return scores

    @cached_property
    def _model(self) -> Any:
        """The bm25s model; None where the pool has no words at all, which bm25s cannot count."""
        bm25s = require("bm25s", "BM25 retrieval")
        documents = self._words(indexed_texts(self._index), return_ids=True)
        if not documents.vocab:
            return None
        model = bm25s.BM25(k1=self._k1, b=self._b, method="lucene")
        model.index(documents, create_empty_token=False, show_progress=False)
        return model

    def _words(self, texts: Sequence[str], *, return_ids: bool) -> Any:
        bm25s = require("bm25s", "BM25 retrieval")
        try:
            return bm25s.tokenize(
                [normalise(text) for text in texts],
                token_pattern=_WORD,
                stopwords=self._stopwords,
                return_ids=return_ids,
                show_progress=False,
            )
        except ValueError as error:
            raise ConfigError(f"bm25: stopwords: {error}") from None
