from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.indexes import Index, Metric
from ragalign.retrieval import Bm25Retriever, DenseRetriever, MmrRetriever, make_retriever


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def oracle(query: NDArray[Any], vectors: NDArray[Any], weight: float, k: int, n: int) -> tuple[list[int], list[float]]:
    """The definition, one candidate at a time."""
    query, vectors = unit(query), unit(vectors)
    relevance = vectors @ query
    candidates = list(np.argsort(-relevance)[:n])
    selected: list[int] = []
    scores: list[float] = []
    while candidates and len(selected) < k:
        values = [
            weight * relevance[i] - (1 - weight) * max((vectors[i] @ vectors[j] for j in selected), default=0.0)
            for i in candidates
        ]
        best = int(np.argmax(values))
        scores.append(values[best])
        selected.append(int(candidates.pop(best)))
    return selected, scores


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.7, 1.0])
def test_real_vectors_against_the_definition(lima: Index, weight: float) -> None:
    queries = ["How do I bake bread?", "Explain black holes", "Write a letter to my landlord"]
    vectors = lima.encoder.encode(queries)
    results = make_retriever("mmr", lima, **{"lambda": weight}).retrieve(queries, 12)
    for row, hits in enumerate(results):
        selected, scores = oracle(vectors[row], lima.vectors, weight, 12, 100)
        assert [lima.pool.position(hit.id) for hit in hits] == selected
        assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_cosines_in_every_metric(make_index: Any, metric: Metric) -> None:
    index = make_index([f"instruction {row}" for row in range(30)], metric=metric, dimension=6)
    [hits] = MmrRetriever(index, lambda_=0.4).retrieve(["query"], 30)
    selected, scores = oracle(index.encoder.encode(["query"])[0], index.vectors, 0.4, 30, 30)
    assert [index.pool.position(hit.id) for hit in hits] == selected
    assert [hit.score for hit in hits] == pytest.approx(scores, abs=1e-6)


def test_lambda_one_is_the_dense_order(lima: Index) -> None:
    [mmr] = MmrRetriever(lima, lambda_=1).retrieve(["How do planes fly?"], 15)
    [dense] = DenseRetriever(lima).retrieve(["How do planes fly?"], 15)
    assert [hit.id for hit in mmr] == [hit.id for hit in dense]


def test_copies_come_once_and_late(make_index: Any) -> None:
    vectors = {"a": [1, 0], "A": [1, 0], "a!": [1, 0], "b": [0.6, 0.8], "query": [1, 0.1]}
    index = make_index(["a", "A", "a!", "b"], dimension=2, vectors=vectors)
    [hits] = MmrRetriever(index, lambda_=0.5).retrieve(["query"], 10)
    assert [index.pool.position(hit.id) for hit in hits] == [0, 3, 1, 2]


def test_candidates_of_another_first_stage(lima: Index) -> None:
    query = "What causes the northern lights?"
    [hits] = make_retriever("mmr", lima, first="bm25", n_candidates=15).retrieve([query], 5)
    [candidates] = Bm25Retriever(lima).retrieve([query], 15)
    assert {hit.id for hit in hits} <= {hit.id for hit in candidates}


def test_batches_in_parts_are_the_same(lima: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = lima.pool.instructions[:9]
    whole = MmrRetriever(lima).retrieve(queries, 6)
    monkeypatch.setattr("ragalign.retrieval.greedy.CHUNK_BYTES", 2_000_000)
    parts = MmrRetriever(lima).retrieve(queries, 6)
    assert [[hit.id for hit in hits] for hits in parts] == [[hit.id for hit in hits] for hits in whole]


def test_options_are_checked(make_index: Any) -> None:
    index = make_index(["a", "b"])
    with pytest.raises(ConfigError, match="mmr: lambda must be between 0 and 1"):
        make_retriever("mmr", index, **{"lambda": 1.2})
    with pytest.raises(ConfigError, match="mmr: n_candidates must be a whole number"):
        make_retriever("mmr", index, n_candidates=0)
