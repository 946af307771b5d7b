from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from ragalign.errors import ConfigError
from ragalign.retrieval import Exclusion, RandomRetriever, make_retriever

QUERIES = [f"query {i}" for i in range(4000)]


@pytest.fixture(scope="module")
def retriever(make_index: Any) -> RandomRetriever:
    return RandomRetriever(make_index([f"instruction {row}" for row in range(40)]), seed=7)


def test_uniform_at_every_rank(retriever: RandomRetriever) -> None:
    chisquare = pytest.importorskip("scipy.stats").chisquare
    results = retriever.retrieve(QUERIES, 5)
    for rank in range(5):
        counts = Counter(hits[rank].id for hits in results)
        assert chisquare([counts[name] for name in retriever.pool.ids]).pvalue > 1e-4


def test_pairs_are_uniform(retriever: RandomRetriever) -> None:
    chisquare = pytest.importorskip("scipy.stats").chisquare
    counts = Counter((hits[0].id, hits[1].id) for hits in retriever.retrieve([f"pair {i}" for i in range(10_000)], 2))
    observed = np.array([counts[a, b] for a in retriever.pool.ids for b in retriever.pool.ids if a != b])
    assert chisquare(observed).pvalue > 1e-4


def test_neither_batch_nor_order_matters(retriever: RandomRetriever) -> None:
    batch = retriever.retrieve(QUERIES[:50], 6)
    assert retriever.retrieve(QUERIES[:50][::-1], 6) == batch[::-1]
    assert [retriever.retrieve([query], 6)[0] for query in QUERIES[:5]] == batch[:5]
    assert [hits[:3] for hits in batch] == retriever.retrieve(QUERIES[:50], 3)


def test_seed_and_text_matter(make_index: Any, retriever: RandomRetriever) -> None:
    [a, b] = retriever.retrieve(["one text", "another text"], 10)
    assert a != b
    index = make_index([f"instruction {row}" for row in range(40)])
    assert make_retriever("random", index, seed=7).retrieve(["one text"], 10) == [a]
    assert make_retriever("random", index, seed=8).retrieve(["one text"], 10) != [a]


def test_known_draw(retriever: RandomRetriever) -> None:
    """The stream is fixed for good: recorded experiments must be repeatable."""
    [hits] = retriever.retrieve(["one text"], 4)
    assert [retriever.pool.position(hit.id) for hit in hits] == [26, 7, 13, 11]


def test_a_filter_keeps_the_order_of_the_rest(retriever: RandomRetriever) -> None:
    [everything] = retriever.retrieve(["one text"], 40)
    gone = frozenset(hit.id for hit in everything[1::2])
    [rest] = retriever.retrieve(["one text"], 40, exclude=Exclusion(gone))
    assert [hit.id for hit in rest] == [hit.id for hit in everything[::2]]


def test_seed_is_checked(make_index: Any) -> None:
    with pytest.raises(ConfigError, match="random: seed must be a whole number"):
        make_retriever("random", make_index(["a"]), seed="7")
