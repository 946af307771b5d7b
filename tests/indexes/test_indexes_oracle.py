"""Every kind of index and every metric against plain NumPy."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from fixtures.vectors import HashEncoder
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError, IndexMismatchError
from ragalign.indexes import Index
from ragalign.indexes.manifest import Metric
from ragalign.pool import Pool

N, DIMENSION, K = 2000, 16, 10
METRICS = get_args(Metric)


def exact(queries: NDArray[np.float32], vectors: NDArray[np.float32], metric: str) -> NDArray[np.float64]:
    """Scores [m, n] by definition, in float64."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return -((q[:, None, :] - v[None, :, :]) ** 2).sum(axis=2)
    if metric == "cosine":
        q, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (q, v))
    return q @ v.T


@pytest.fixture(scope="module")
def pool() -> Pool:
    from ragalign.types import Demonstration

    return Pool.from_demonstrations(Demonstration(f"topic{i % 40} question {i}", f"answer {i}") for i in range(N))


@pytest.fixture(scope="module")
def queries() -> NDArray[np.float32]:
    return HashEncoder(DIMENSION).encode([f"topic{i % 40} asks {i}" for i in range(64)])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["auto", "flat"])
def test_flat_indexes_are_exact(pool: Pool, queries: NDArray[np.float32], kind: str, metric: Metric) -> None:
    index = Index.build(pool, HashEncoder(DIMENSION), kind=kind, metric=metric)
    assert index.manifest.factory == "Flat"
    scores, positions = index.search(queries, K)
    oracle = exact(queries, np.asarray(index.vectors), metric)
    best = np.sort(oracle, axis=1)[:, ::-1][:, :K]
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(oracle, positions, axis=1), best, rtol=1e-4, atol=1e-4)
    assert scores.dtype == np.float32
    assert positions.dtype == np.int64


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("kind", "floor"), [("hnsw", 0.95), ("ivf", 0.9), ("IVF128,Flat", 0.85), ("IVF16,PQ8x4", 0.35)]
)
def test_approximate_indexes_find_most(
    pool: Pool, queries: NDArray[np.float32], kind: str, floor: float, metric: Metric
) -> None:
    index = Index.build(pool, HashEncoder(DIMENSION), kind=kind, metric=metric)
    scores, positions = index.search(queries, K)
    oracle = exact(queries, np.asarray(index.vectors), metric)
    best = np.argsort(-oracle, axis=1)[:, :K]
    recall = np.mean([len(set(found) & set(true)) / K for found, true in zip(positions, best, strict=True)])
    assert recall >= floor
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == K for row in positions)
    if "PQ" not in kind:
        np.testing.assert_allclose(scores, np.take_along_axis(oracle, positions, axis=1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf", "IVF16,PQ8x4"])
@pytest.mark.parametrize("share", [0.9, 0.3, 0.01])
def test_only_what_is_allowed_comes_back_and_k_of_it(
    pool: Pool, queries: NDArray[np.float32], kind: str, metric: Metric, share: float
) -> None:
    index = Index.build(pool, HashEncoder(DIMENSION), kind=kind, metric=metric)
    allowed = np.random.default_rng(3).random(N) < share
    scores, positions = index.search(queries, K, allowed=allowed)
    assert allowed[positions].all()
    assert np.isfinite(scores).all()
    oracle = np.where(allowed, exact(queries, np.asarray(index.vectors), metric), -np.inf)
    best = np.argsort(-oracle, axis=1)[:, :K]
    recall = np.mean([len(set(found) & set(true)) / K for found, true in zip(positions, best, strict=True)])
    assert recall >= (1.0 if kind == "flat" else 0.5 if "PQ" in kind else 0.85)


def test_fewer_than_k_are_padded(pool: Pool, queries: NDArray[np.float32]) -> None:
    index = Index.build(pool, HashEncoder(DIMENSION))
    allowed = np.zeros(N, dtype=bool)
    allowed[[5, 9]] = True
    scores, positions = index.search(queries, 4, allowed=allowed)
    assert set(positions[:, :2].ravel()) == {5, 9}
    assert (positions[:, 2:] == -1).all()
    assert np.isneginf(scores[:, 2:]).all()
    assert (index.search(queries, 3, allowed=np.zeros(N, dtype=bool))[1] == -1).all()
    assert index.search(queries, N + 5)[1].shape == (64, N + 5)


def test_a_batch_equals_single_searches(pool: Pool, queries: NDArray[np.float32]) -> None:
    index = Index.build(pool, HashEncoder(DIMENSION))
    together = index.search(queries, K)[1]
    alone = np.concatenate([index.search(query[None], K)[1] for query in queries])
    np.testing.assert_array_equal(together, alone)


def test_equal_scores_come_in_pool_order() -> None:
    from ragalign.types import Demonstration

    class Same(HashEncoder):
        def encode(self, texts: object, **_: object) -> NDArray[np.float32]:
            return np.ones((len(texts), self.dimension), dtype=np.float32)  # type: ignore[arg-type]

    index = Index.build(Pool.from_demonstrations(Demonstration(f"q {i}", "a") for i in range(30)), Same())
    np.testing.assert_array_equal(index.search(np.ones((1, 16), np.float32), 30)[1][0], np.arange(30))


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_tiny_pools(n: int, kind: str) -> None:
    from ragalign.types import Demonstration

    index = Index.build(
        Pool.from_demonstrations(Demonstration(f"q {i}", "a") for i in range(n)), HashEncoder(), kind=kind
    )
    _, positions = index.search(HashEncoder().encode(["q x"]), 3)
    assert sorted(positions[0].tolist()) == sorted([*range(n), *[-1] * (3 - n)])


def test_wrong_arguments_are_named(pool: Pool) -> None:
    index = Index.build(pool, HashEncoder(DIMENSION))
    with pytest.raises(IndexMismatchError, match=r"needs \[m, 16\]"):
        index.search(np.zeros((1, 5), np.float32), 3)
    with pytest.raises(ConfigError, match="k must be at least 1"):
        index.search(np.zeros((1, 16), np.float32), 0)
    with pytest.raises(DataError, match="NaN"):
        index.search(np.full((1, 16), np.nan, np.float32), 3)
    with pytest.raises(ConfigError, match="boolean"):
        index.search(np.zeros((1, 16), np.float32), 3, allowed=np.zeros(3, dtype=bool))
    with pytest.raises(ConfigError, match="metric must be one of"):
        Index.build(pool, HashEncoder(), metric="cosinus")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Nonsense"):
        Index.build(pool, HashEncoder(), kind="Nonsense")
    with pytest.raises(ConfigError, match="vectors"):
        Index.build(pool[:10], HashEncoder(), kind="IVF4,PQ8")
