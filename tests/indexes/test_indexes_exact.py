"""Search at its edges: exact kinds against double precision, odd sizes and masks, what is refused, silence."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from indexes_made import TableEncoder, clustered, make_pool
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError, IndexMismatchError
from ragalign.indexes import Index, Metric
from ragalign.indexes.kinds import AUTO_FLAT_MAX, choose

METRICS: tuple[Metric, ...] = get_args(Metric)
N, DIMENSION, M = 1500, 32, 80
QUANTISED = ("PQ8", "IVF8,PQ8", "IVF32,PQ16", "IVF16_HNSW32,PQ8", "HNSW16,SQ8", "OPQ4_16,IVF8,PQ4", "PQ8,RFlat")

Scores = NDArray[np.float64]


def true_scores(vectors: NDArray[Any], queries: NDArray[Any], metric: Metric) -> Scores:
    """All scores ``[m, n]``, higher is closer."""
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return -((queries[:, None, :] - vectors[None, :, :]) ** 2).sum(axis=2)
    if metric == "cosine":
        lengths = np.linalg.norm(vectors, axis=1), np.linalg.norm(queries, axis=1)
        vectors = vectors / np.where(lengths[0] > 0, lengths[0], 1)[:, None]
        queries = queries / np.where(lengths[1] > 0, lengths[1], 1)[:, None]
    return queries @ vectors.T


def check_exact(found: tuple[Any, Any], scores: Scores, k: int, allowed: NDArray[np.bool_] | None = None) -> None:
    """The right shape, the right scores, allowed positions that have these scores, none of them twice."""
    m, n = scores.shape
    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    n_expected = min(k, n if allowed is None else int(allowed.sum()))
    ranked = np.argsort(-scores, axis=1, kind="stable")
    in_order = np.take_along_axis(scores, ranked, axis=1)
    expected = in_order[:, :n_expected]
    got, positions = found
    assert (got.dtype, positions.dtype) == (np.float32, np.int64)
    assert got.shape == positions.shape == (m, k)
    assert (got[:, n_expected:] == -np.inf).all()
    assert (positions[:, n_expected:] == -1).all()
    got, positions = got[:, :n_expected], positions[:, :n_expected]
    tolerance = 2e-5 * max(1.0, float(np.abs(expected).max(initial=0)))
    assert np.allclose(got, expected, rtol=0, atol=tolerance)
    assert np.allclose(np.take_along_axis(scores, positions, axis=1), got, rtol=0, atol=tolerance)
    assert all(len(set(row)) == len(row) for row in positions.tolist())
    assert (np.diff(got, axis=1) <= 0).all()
    # Where no other score is near, the position is NumPy's too.
    fence = np.full((m, 1), np.inf)
    above = np.concatenate([fence, in_order[:, :-1]], axis=1)[:, :n_expected] - expected
    below = expected - np.concatenate([in_order[:, 1:], -fence], axis=1)[:, :n_expected]
    alone = (above > 2 * tolerance) & (below > 2 * tolerance)
    assert (positions == ranked[:, :n_expected])[alone].all()


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return clustered(N, DIMENSION)


@pytest.fixture(scope="module")
def queries(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    generator = np.random.default_rng(1)
    noise = 0.3 * generator.normal(size=(M, DIMENSION))
    return (vectors[generator.choice(N, M, replace=False)] + noise).astype(np.float32)


@pytest.fixture(scope="module")
def flat(vectors: NDArray[np.float32]) -> dict[Metric, Index]:
    pool, encoder = make_pool(range(N)), TableEncoder(vectors)
    return {metric: Index.build(pool, encoder, kind="flat", metric=metric) for metric in METRICS}


def masks() -> dict[str, NDArray[np.bool_]]:
    generator = np.random.default_rng(2)
    few = np.zeros(N, dtype=bool)
    few[[5, 77, N - 1]] = True
    return {
        "dense": generator.random(N) < 0.95,
        "sparse": generator.random(N) < 0.02,
        "few": few,
        "none": np.zeros(N, dtype=bool),
        "all": np.ones(N, dtype=bool),
    }


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 10, 150, N, N + 50])
def test_flat_equals_numpy_for_every_k(
    flat: dict[Metric, Index], vectors: Any, queries: Any, metric: Metric, k: int
) -> None:
    check_exact(flat[metric].search(queries, k), true_scores(vectors, queries, metric), k)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("m", [1, 3, M])
def test_masked_flat_equals_numpy(
    flat: dict[Metric, Index], vectors: Any, queries: Any, metric: Metric, name: str, m: int
) -> None:
    mask, scores = masks()[name], true_scores(vectors, queries[:m], metric)
    check_exact(flat[metric].search(queries[:m], 10, allowed=mask), scores, 10, mask)


small = st.integers(min_value=-3, max_value=3).map(float)


@given(data=st.data(), metric=st.sampled_from(METRICS), masked=st.booleans())
def test_any_small_index_equals_numpy(data: st.DataObject, metric: Metric, masked: bool) -> None:
    # Whole numbers: many ties and zero vectors, and no rounding except in the cosine.
    n, dimension = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 9))
    m, k = data.draw(st.integers(0, 80)), data.draw(st.integers(1, 50))
    vectors = data.draw(st_numpy.arrays(np.float32, (n, dimension), elements=small))
    queries = data.draw(st_numpy.arrays(np.float32, (m, dimension), elements=small))
    allowed = data.draw(st_numpy.arrays(np.bool_, n)) if masked else None
    index = Index.build(make_pool(range(n)), TableEncoder(vectors), metric=metric)
    found = index.search(queries, k, allowed=allowed)
    check_exact(found, true_scores(vectors, queries, metric), k, allowed)
    tied = (found[0][:, 1:] == found[0][:, :-1]) & (found[1][:, 1:] >= 0)
    assert (np.diff(found[1], axis=1) > 0)[tied].all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_large_masks_go_through_the_approximate_structure(
    vectors: Any, queries: Any, metric: Metric, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the mask were too large for its rows to be copied out.
    monkeypatch.setattr("ragalign.indexes.faiss_backend._GATHER_BLOCK", 100)
    index = Index.build(make_pool(range(N)), TableEncoder(vectors), kind=kind, metric=metric)
    monkeypatch.setattr(index._searcher, "_search_exactly", None)
    mask = np.random.default_rng(4).random(N) < 0.2
    found = index.search(queries, 10, allowed=mask)[1]
    assert mask[found].all()
    best = np.argsort(-np.where(mask, true_scores(vectors, queries, metric), -np.inf), axis=1)[:, :10]
    assert np.mean([len({*row} & {*true}) / 10 for row, true in zip(found.tolist(), best.tolist(), strict=True)]) > 0.9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["hnsw", "ivf", "IVF32,PQ16"])
def test_a_batch_equals_single_queries(vectors: Any, queries: Any, metric: Metric, kind: str) -> None:
    index = Index.build(make_pool(range(N)), TableEncoder(vectors), kind=kind, metric=metric)
    for mask in (None, *masks().values()):
        scores, positions = index.search(queries, 10, allowed=mask)
        singles = [index.search(query[None], 10, allowed=mask) for query in queries]
        alone = np.concatenate([one[0] for one in singles])
        assert np.allclose(scores, alone, rtol=1e-4, atol=1e-4)
        assert (positions == np.concatenate([one[1] for one in singles])).mean() > 0.995


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_kinds_work_in_silence_and_in_no_time(
    vectors: Any, queries: Any, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = time.process_time()
    index = Index.build(make_pool(range(N)), TableEncoder(vectors), kind=kind, metric="ip")
    # FAISS's own settings take more than a second for each part of a vector.
    assert time.process_time() - begun < 10
    index.save(tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    for each in (index, opened):
        scores, positions = each.search(queries, 20)
        assert (positions >= 0).all()
        known = np.take_along_axis(true_scores(vectors, queries, "ip"), positions, axis=1)
        assert np.corrcoef(known.ravel(), scores.ravel())[0, 1] > 0.8
        assert np.array_equal(positions, index.search(queries, 20)[1])
        mask = masks()["sparse"]
        found = each.search(queries, 5, allowed=mask)
        check_exact(found, true_scores(vectors, queries, "ip"), 5, mask)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf"])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_tiny_pools(metric: Metric, kind: str, n: int, tmp_path: Path) -> None:
    vectors = clustered(n, 8)
    index = Index.build(make_pool(range(n)), TableEncoder(vectors), kind=kind, metric=metric)
    index.save(tmp_path / "index")
    for each in (index, Index.open(tmp_path / "index")):
        check_exact(each.search(vectors, 5), true_scores(vectors, vectors, metric), 5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["auto", "flat", "hnsw", "ivf", "IVF32,PQ16"])
def test_an_empty_pool(metric: Metric, kind: str, tmp_path: Path) -> None:
    index = Index.build(make_pool([]), TableEncoder(clustered(3, 8)), kind=kind, metric=metric)
    index.save(tmp_path / "index")
    for each in (index, Index.open(tmp_path / "index")):
        assert len(each) == 0
        for allowed in (None, np.zeros(0, dtype=bool)):
            scores, positions = each.search(clustered(4, 8), 3, allowed=allowed)
            assert scores.shape == positions.shape == (4, 3)
            assert (scores == -np.inf).all()
            assert (positions == -1).all()
    Index.verify(tmp_path / "index")


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(flat: dict[Metric, Index], queries: Any, k: int) -> None:
    with pytest.raises(ConfigError, match="k must be at least 1"):
        flat["cosine"].search(queries, k)


@pytest.mark.parametrize("shape", [(2, DIMENSION - 1), (2, DIMENSION + 1), (DIMENSION,), (1, 2, DIMENSION)])
def test_another_dimension_is_refused(flat: dict[Metric, Index], shape: tuple[int, ...]) -> None:
    with pytest.raises(IndexMismatchError, match=r"this index needs \[m, 32\]; encode them with 'table'"):
        flat["cosine"].search(np.zeros(shape, np.float32), 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("metric", METRICS)
def test_what_has_no_score_is_refused(flat: dict[Metric, Index], metric: Metric, bad: float) -> None:
    query = np.zeros((2, DIMENSION), np.float32)
    query[1, 3] = bad
    with pytest.raises(DataError, match="query vector"):
        flat[metric].search(query, 5)
    vectors = clustered(20, 8)
    vectors[11, 2] = bad
    pool = make_pool(range(20))
    with pytest.raises(DataError, match=f"demonstration {pool.ids[11]}"):
        Index.build(pool, TableEncoder(vectors), metric=metric)


@pytest.mark.parametrize("allowed", [np.ones(N - 1, bool), np.ones(N, int), np.ones((1, N), bool), np.arange(5)])
def test_a_mask_that_does_not_fit_is_refused(flat: dict[Metric, Index], queries: Any, allowed: Any) -> None:
    with pytest.raises(ConfigError, match=rf"boolean array of shape \[{N}\]"):
        flat["cosine"].search(queries, 5, allowed=allowed)


@pytest.mark.parametrize("metric", METRICS)
def test_search_takes_any_layout_and_leaves_its_arguments_alone(
    flat: dict[Metric, Index], queries: NDArray[np.float32], metric: Metric
) -> None:
    copy, expected = queries.copy(), flat[metric].search(queries, 4)
    for other in (np.asfortranarray(queries), queries.astype(np.float64), np.repeat(queries, 2, axis=0)[::2]):
        assert np.array_equal(flat[metric].search(other, 4)[1], expected[1])
    assert np.array_equal(queries, copy)


@pytest.mark.parametrize("kind", ["", "  ", "nonsense", "IVF", "IVF0,Flat", "PQ7", "IVF9999,Flat", "Flat,IDMap"])
def test_a_kind_that_cannot_be_built_is_one_line(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Index.build(make_pool(range(50)), TableEncoder(clustered(50, 8)), kind=kind)
    message = str(caught.value)
    assert "\n" not in message
    assert ".cpp" not in message


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["HNSW16,PQ8", "PCA16,HNSW16,PQ8"])
def test_a_kind_that_faiss_has_for_distances_only(vectors: Any, queries: Any, metric: Metric, kind: str) -> None:
    pool, encoder = make_pool(range(N)), TableEncoder(vectors)
    if metric != "l2":
        with pytest.raises(ConfigError, match=f"'{kind}' for the metric l2 only"):
            Index.build(pool, encoder, kind=kind, metric=metric)
        return
    scores, positions = Index.build(pool, encoder, kind=kind, metric=metric).search(queries, 20)
    known = np.take_along_axis(true_scores(vectors, queries, metric), positions, axis=1)
    assert np.corrcoef(known.ravel(), scores.ravel())[0, 1] > 0.6


def test_auto_is_exact_until_it_is_large() -> None:
    assert choose("auto", AUTO_FLAT_MAX) == choose("flat", AUTO_FLAT_MAX)
    assert choose("auto", AUTO_FLAT_MAX + 1) == choose("hnsw", AUTO_FLAT_MAX + 1)
    assert all(choose("ivf", n).factory.startswith("IVF1,") for n in (1, 38, 77))
