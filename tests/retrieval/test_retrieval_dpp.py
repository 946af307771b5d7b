from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval import Bm25Retriever, DenseRetriever, DppRetriever, make_retriever


def unit(vectors: NDArray[Any]) -> NDArray[np.float64]:
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def brute_force(
    query: NDArray[Any], vectors: NDArray[Any], scale: float, k: int, n: int
) -> tuple[list[int], list[float]]:
    """Greedy by computing every log-determinant from scratch."""
    query, vectors = unit(query), unit(vectors)
    order = np.argsort(-(vectors @ query))[:n]
    near = vectors[order]
    quality = np.exp((1 + near @ query) / 2 / (2 * scale))
    kernel = quality[:, None] * (1 + near @ near.T) / 2 * quality[None, :]
    selected: list[int] = []
    gains: list[float] = []
    last = 0.0
    for _ in range(k):
        values = [
            -np.inf if i in selected else np.linalg.slogdet(kernel[np.ix_([*selected, i], [*selected, i])])[1]
            for i in range(len(order))
        ]
        best = int(np.argmax(values))
        selected.append(best)
        gains.append(float(values[best] - last))
        last = values[best]
    return [int(order[i]) for i in selected], gains


@pytest.mark.parametrize("scale", [0.05, 0.1, 1.0])
def test_real_vectors_against_brute_force(lima: Index, scale: float) -> None:
    queries = ["How do I bake bread?", "Explain black holes", "Write a letter to my landlord"]
    vectors = lima.encoder.encode(queries)
    for row, hits in enumerate(DppRetriever(lima, scale=scale).retrieve(queries, 12)):
        selected, gains = brute_force(vectors[row], lima.vectors, scale, 12, 100)
        assert [lima.pool.position(hit.id) for hit in hits] == selected
        assert [hit.score for hit in hits] == pytest.approx(gains, abs=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_cosines_in_every_metric(make_index: Any, metric: Any) -> None:
    index = make_index([f"instruction {row}" for row in range(12)], metric=metric, dimension=16)
    [hits] = DppRetriever(index).retrieve(["query"], 12)
    selected, gains = brute_force(index.encoder.encode(["query"])[0], index.vectors, 0.1, 12, 12)
    assert [index.pool.position(hit.id) for hit in hits] == selected
    assert [hit.score for hit in hits] == pytest.approx(gains, abs=1e-4)


def test_identical_candidates_come_once_each_and_last(make_index: Any) -> None:
    vectors = {text: [1, 0, 0] for text in ("a", "A", "a.", "a!", "a?")}
    vectors |= {"b": [0.9, 0.4, 0], "c": [0.5, 0, 0.8], "query": [1, 0.2, 0.1]}
    index = make_index(["a", "A", "b", "a.", "c", "a!", "a?"], dimension=3, vectors=vectors)
    [hits] = DppRetriever(index).retrieve(["query"], 50)
    found = [index.pool.position(hit.id) for hit in hits]
    assert sorted(found) == list(range(7))
    assert set(found[:3]) & {2, 4} == {2, 4}
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert np.isfinite(scores).all()


def test_all_identical(make_index: Any) -> None:
    texts = [f"copy {row}" for row in range(9)]
    index = make_index(texts, dimension=2, vectors={text: [0.6, 0.8] for text in texts})
    [hits] = DppRetriever(index).retrieve(["query"], 9)
    assert sorted(index.pool.position(hit.id) for hit in hits) == list(range(9))


def test_more_than_the_rank_of_the_kernel(make_index: Any) -> None:
    """In two dimensions a fourth vector adds nothing to the span; all come back all the same."""
    index = make_index([f"instruction {row}" for row in range(20)], dimension=2)
    [hits] = DppRetriever(index).retrieve(["query"], 20)
    assert len({hit.id for hit in hits}) == 20


def test_small_scale_is_the_dense_order(lima: Index) -> None:
    [dpp] = DppRetriever(lima, scale=1e-5).retrieve(["How do planes fly?"], 15)
    [dense] = DenseRetriever(lima).retrieve(["How do planes fly?"], 15)
    assert [hit.id for hit in dpp] == [hit.id for hit in dense]


def test_candidates_of_another_first_stage(lima: Index) -> None:
    query = "What causes the northern lights?"
    [hits] = make_retriever("dpp", lima, first={"name": "bm25", "k1": 1.2}, n_candidates=15).retrieve([query], 5)
    [candidates] = Bm25Retriever(lima, k1=1.2).retrieve([query], 15)
    assert {hit.id for hit in hits} <= {hit.id for hit in candidates}


def test_options_are_checked(make_index: Any) -> None:
    with pytest.raises(ConfigError, match="dpp: scale must be at least"):
        make_retriever("dpp", make_index(["a", "b"]), scale=0)
