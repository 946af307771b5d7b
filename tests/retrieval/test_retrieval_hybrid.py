from __future__ import annotations

from typing import Any

import pytest

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval import (
    Bm25Retriever,
    DenseRetriever,
    Exclusion,
    HybridRetriever,
    RandomRetriever,
    Retriever,
    make_retriever,
)


def fused(rankings: list[list[str]], ids: list[str], constant: float = 60) -> dict[str, float]:
    """Reciprocal rank fusion by its definition."""
    return {
        name: sum(1 / (constant + ranking.index(name) + 1) for ranking in rankings if name in ranking) for name in ids
    }


@pytest.mark.parametrize("exclude", [None, Exclusion(), Exclusion(near=0.5)])
def test_fusion_by_definition(lima: Index, exclude: Exclusion | None) -> None:
    queries = lima.pool.instructions[3:600:40]
    stages = [DenseRetriever(lima), Bm25Retriever(lima)]
    results = HybridRetriever(lima).retrieve(queries, 20, exclude=exclude)
    rankings = [stage.retrieve(queries, 100, exclude=exclude) for stage in stages]
    for row, hits in enumerate(results):
        lists = [[hit.id for hit in rankings[0][row]], [hit.id for hit in rankings[1][row] if hit.score > 0]]
        scores = fused(lists, lima.pool.ids)
        best = sorted(lima.pool.ids, key=lambda name: (-round(scores[name], 12), lima.pool.position(name)))[:20]
        assert [hit.id for hit in hits] == best
        assert [hit.score for hit in hits] == pytest.approx([scores[name] for name in best], rel=1e-12)


def test_words_in_common_with_nobody_earn_nothing(make_index: Any) -> None:
    """BM25 has no hit for such a query: the fusion must be the dense order alone."""
    index = make_index([f"instruction {row}" for row in range(30)])
    [hits] = HybridRetriever(index).retrieve(["zebra"], 30)
    [dense] = DenseRetriever(index).retrieve(["zebra"], 30)
    assert [hit.id for hit in hits] == [hit.id for hit in dense]
    [alone] = HybridRetriever(index, retrievers=[Bm25Retriever(index)]).retrieve(["zebra"], 4)
    assert alone == []


def test_any_retrievers_any_constant_any_depth(make_index: Any) -> None:
    index = make_index([f"word{row % 7} instruction {row}" for row in range(40)])
    stages: list[Retriever] = [DenseRetriever(index), RandomRetriever(index, seed=3), Bm25Retriever(index)]
    queries = ["word3 instruction", "word1"]
    results = HybridRetriever(index, retrievers=stages, constant=5, n_candidates=10).retrieve(queries, 8)
    for row, hits in enumerate(results):
        rankings = [[hit.id for hit in stage.retrieve(queries, 10)[row] if hit.score != 0] for stage in stages]
        scores = fused(rankings, index.pool.ids, 5)
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores.values(), reverse=True)[:8])
        assert all(hit.score == pytest.approx(scores[hit.id]) for hit in hits)


def test_shallow_depth_grows_to_k(make_index: Any) -> None:
    index = make_index([f"instruction {row}" for row in range(40)])
    [hits] = HybridRetriever(index, n_candidates=2).retrieve(["instruction"], 25)
    assert len(hits) == 25


def test_by_name(make_index: Any) -> None:
    index = make_index([f"instruction {row}" for row in range(40)])
    given = make_retriever("hybrid", index, retrievers=["dense", {"name": "random", "seed": 4}])
    same = HybridRetriever(index, retrievers=[DenseRetriever(index), RandomRetriever(index, seed=4)])
    assert given.retrieve(["a", "b"], 9) == same.retrieve(["a", "b"], 9)


def test_stages_are_checked(make_index: Any) -> None:
    index, other = make_index(["a", "b"]), make_index(["a", "c"])
    with pytest.raises(ConfigError, match="at least one retriever"):
        HybridRetriever(index, retrievers=[])
    with pytest.raises(ConfigError, match="stage 'dense' uses another pool"):
        HybridRetriever(index, retrievers=[DenseRetriever(other)])
    with pytest.raises(ConfigError, match="expected a retriever, not 'dense'"):
        HybridRetriever(index, retrievers=["dense"])  # type: ignore[list-item]
    HybridRetriever(index, retrievers=[DenseRetriever(make_index(["a", "b"]))])
