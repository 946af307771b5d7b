from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ragalign.indexes import Index, Metric
from ragalign.retrieval import DenseRetriever, Exclusion, make_retriever
from ragalign.text import normalise


def oracle(metric: Metric, queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return -((q[:, None, :] - v[None, :, :]) ** 2).sum(axis=2)
    if metric == "cosine":
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        v /= np.linalg.norm(v, axis=1, keepdims=True)
    return q @ v.T


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_nearest_by_the_metric(make_index: Any, metric: Metric) -> None:
    instructions = [f"instruction {i}" for i in range(60)]
    index = make_index(instructions, metric=metric, dimension=8)
    queries = [f"query {i}" for i in range(30)]
    scores = oracle(metric, index.encoder.encode(queries), index.encoder.encode(instructions))
    for row, hits in enumerate(DenseRetriever(index).retrieve(queries, 7)):
        best = np.argsort(-scores[row])[:7]
        assert [hit.id for hit in hits] == [index.pool.ids[i] for i in best]
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5, 6, 7]
        np.testing.assert_allclose([hit.score for hit in hits], scores[row][best], rtol=1e-5, atol=1e-5)


def test_equal_queries_are_encoded_once_and_get_their_own_lists(make_index: Any) -> None:
    index = make_index(["a", "b", "c"])
    before = index.encoder.n_encoded
    first, other, again = DenseRetriever(index).retrieve(["x", "y", "x"], 2)
    assert index.encoder.n_encoded - before == 2
    assert first == again
    assert first is not again
    assert first != other


def test_the_note_s_selection_is_found_in_its_order(lima: Index, shared_data: Path) -> None:
    lines = (shared_data / "ica" / "selection_golden.jsonl").read_text(encoding="utf-8").splitlines()
    golden = [json.loads(line) for line in lines]
    assert len(golden) == 60
    results = DenseRetriever(lima).retrieve([row["query"] for row in golden], 20)
    row_of = {demo.id: int((demo.source_id or "").removeprefix("lima-")) for demo in lima.pool}
    for row, hits in zip(golden, results, strict=True):
        score_of = {row_of[hit.id]: hit.score for hit in hits}
        selected = row["selected_most_relevant_first"]
        assert set(selected) <= set(score_of)
        scores = np.array([score_of[number] for number in selected])
        # Near ties may swap.
        assert (np.diff(scores) <= 1e-6).all()


@pytest.mark.parametrize("change", [str, lambda t: t + "  \n", lambda t: t.upper(), lambda t: "\t" + t.title() + " "])
def test_a_prompt_is_never_its_own_demonstration(lima: Index, change: Any) -> None:
    queries = [change(text) for text in lima.pool.instructions[::5]]
    assert len(queries) == 200
    for query, hits in zip(queries, DenseRetriever(lima).retrieve(queries, 20, exclude=Exclusion()), strict=True):
        assert len(hits) == 20
        assert normalise(query) not in {normalise(lima.pool.get(hit.id).instruction) for hit in hits}


@pytest.mark.parametrize("name", ["bm25", "hybrid", "mmr", "dpp", "random"])
def test_nor_is_it_with_any_other_strategy(lima: Index, name: str) -> None:
    queries = [f"{text.swapcase()}\n" for text in lima.pool.instructions[::20]]
    for query, hits in zip(queries, make_retriever(name, lima).retrieve(queries, 20, exclude=Exclusion()), strict=True):
        # Few words are shared with few demonstrations, which are then all that bm25 finds.
        assert len(hits) == 20 or (name == "bm25" and 0 < len(hits) < 20)
        assert normalise(query) not in {normalise(lima.pool.get(hit.id).instruction) for hit in hits}


def test_without_exclusion_a_prompt_finds_itself(lima: Index) -> None:
    results = DenseRetriever(lima).retrieve(lima.pool.instructions[:50], 1)
    assert [hits[0].id for hits in results] == lima.pool.ids[:50]


def test_near_duplicates_stay_out(lima: Index) -> None:
    queries = [f"Please tell me: {text}" for text in lima.pool.instructions[:40]]
    results = DenseRetriever(lima).retrieve(queries, 10, exclude=Exclusion(near=0.6))
    cosines = lima.encoder.encode(queries) @ lima.vectors.T
    assert (cosines >= 0.6).any(axis=1).sum() > 30
    for row, hits in enumerate(results):
        candidates = np.flatnonzero(cosines[row] < 0.6)
        best = candidates[np.argsort(-cosines[row][candidates])[:10]]
        np.testing.assert_allclose([hit.score for hit in hits], cosines[row][best], atol=1e-5)
        assert all(cosines[row][lima.pool.position(hit.id)] < 0.6 for hit in hits)
