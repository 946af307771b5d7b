"""Folders that vouch for damage: a manifest with right checksums over wrong content, as a broken tool could write."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from fixtures.forged import manifest_of, npy, replace, sign, zipped
from fixtures.vectors import HashEncoder
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError, IndexFormatError, IndexMismatchError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration

QUERIES = HashEncoder().encode(["topic3 question 3", "topic7 question 47", "topic1 something else"])


def pool_of(n: int) -> Pool:
    return Pool.from_demonstrations(Demonstration(f"topic{i % 20} question {i}", f"answer {i}") for i in range(n))


@pytest.fixture(scope="module", params=["flat", "hnsw", "IVF4,Flat", "IVF4,PQ4", "PQ4"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "index"
    Index.build(pool_of(300), HashEncoder(), kind=request.param).save(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "index"))


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flat") / "index"
    Index.build(pool_of(60), HashEncoder(), kind="flat").save(folder)
    return folder


def vectors_of(folder: Path) -> np.ndarray:
    return np.load(folder / manifest_of(folder)["files"]["vectors"]["name"])


def faiss_of(folder: Path) -> Any:
    return faiss.read_index(str(folder / manifest_of(folder)["files"]["faiss"]["name"]))


GOOD = npy(np.ones((60, 16), np.float32))
FILES = {
    "empty": b"",
    "a zip": zipped(),
    "magic only": GOOD[:6],
    "cut in the header": GOOD[:40],
    "cut in the data": GOOD[:-5],
    "garbage": b"\x93NUMPY\x01\x00" + b"\xff" * 300,
    "a broken header": GOOD.replace(b"'descr'", b"'descr"),
    "a header that is no dictionary": GOOD[:10] + b"[1, 2]".ljust(117) + b"\n" + GOOD[128:],
    "a deeply nested header": b"\x93NUMPY\x02\x00" + (60000).to_bytes(4, "little") + b"(" * 60000,
    "a huge shape": GOOD.replace(b"(60, 16)", b"(9" + b"9" * 4 + b", 9" + b"9" * 3 + b")")[: len(GOOD)],
    "a negative shape": GOOD.replace(b"(60, 16)", b"(-6, 16)"),
    "objects": npy(np.array([{}, None], dtype=object)),
    "doubles": npy(np.ones((60, 16))),
    "big-endian": npy(np.ones((60, 16), ">f4")),
    "columns first": npy(np.asfortranarray(np.ones((60, 16), np.float32))),
    "one dimension": npy(np.ones(960, np.float32)),
    "too few": npy(np.ones((59, 16), np.float32)),
    "text": b"hello",
}


@pytest.mark.parametrize("role", ["vectors", "faiss", "pool"])
@pytest.mark.parametrize("content", FILES.values(), ids=FILES.keys())
def test_a_file_of_something_else_gets_one_line(flat: Path, tmp_path: Path, role: str, content: bytes) -> None:
    folder = Path(shutil.copytree(flat, tmp_path / "index"))
    replace(folder, role, content)
    for verify in ("full", "size"):
        with pytest.raises(IndexFormatError, match="index") as caught:
            Index.open(folder, verify=verify)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 0.0])
def test_verify_finds_vectors_without_a_length(folder: Path, value: float) -> None:
    vectors = vectors_of(folder)
    vectors[137] = value
    replace(folder, "vectors", npy(vectors))
    with pytest.raises(IndexFormatError, match=r"the vector of the demonstration \w+ (is zero|contains NaN)"):
        Index.verify(folder)


def test_verify_finds_a_faiss_file_of_other_vectors(folder: Path) -> None:
    vectors = vectors_of(folder)
    vectors[137] = vectors[137][::-1]
    replace(folder, "vectors", npy(vectors))
    with pytest.raises(IndexFormatError, match="does not agree with the vectors: 1 of its vectors"):
        Index.verify(folder)


def test_verify_finds_vectors_in_another_order(folder: Path) -> None:
    vectors = vectors_of(folder)
    vectors[[100, 200]] = vectors[[200, 100]]
    replace(folder, "vectors", npy(vectors))
    with pytest.raises(IndexFormatError, match="does not agree with the vectors"):
        Index.verify(folder)


def other_ids(index: Any) -> Any:
    """The same vectors under other numbers, where a kind has numbers."""
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        wrapped = faiss.IndexIDMap(faiss.index_factory(index.d, "Flat", index.metric_type))
        wrapped.add_with_ids(index.reconstruct_n(0, index.ntotal), np.arange(index.ntotal)[::-1] + 0)
        return wrapped
    fresh = faiss.clone_index(index)
    faiss.try_extract_index_ivf(fresh).reset()
    numbers = np.roll(np.arange(index.ntotal), 1)
    fresh.add_with_ids(index.reconstruct_n(0, index.ntotal), numbers)
    return fresh


def test_other_numbers_of_vectors_are_refused(folder: Path) -> None:
    replace(folder, "faiss", faiss.serialize_index(other_ids(faiss_of(folder))).tobytes())
    with pytest.raises(IndexFormatError, match=r"custom vector ids|does not agree"):
        Index.verify(folder)


def test_numbers_out_of_range_are_not_searched_for(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Index.build(pool_of(300), HashEncoder(), kind="IVF4,Flat").save(folder)
    index = faiss_of(folder)
    found = index.reconstruct_n(0, index.ntotal)
    index.reset()
    index.add_with_ids(found, np.arange(len(found)) + 10_000)
    replace(folder, "faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(IndexFormatError):
        Index.verify(folder)
    with pytest.raises(IndexFormatError, match="has wrong vector ids"):
        Index.open(folder).search(QUERIES, 3)


@pytest.mark.parametrize("kind", ["IndexIDMap", "IndexIDMap2"])
def test_vector_ids_within_another_index_are_refused(flat: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(flat, tmp_path / "index"))
    vectors = vectors_of(folder)
    within = getattr(faiss, kind)(faiss.IndexFlatIP(16))
    index = faiss.IndexPreTransform(faiss.RandomRotationMatrix(16, 16), within)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(60)[::-1] * 2)
    replace(folder, "faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(IndexFormatError, match="has custom vector ids"):
        Index.verify(folder)


def test_a_graph_without_links_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    Index.build(pool_of(300), HashEncoder(), kind="hnsw").save(folder)
    index = faiss_of(folder)
    neighbours = faiss.vector_to_array(index.hnsw.neighbors)
    faiss.copy_array_to_vector(np.full_like(neighbours, -1), index.hnsw.neighbors)
    replace(folder, "faiss", faiss.serialize_index(index).tobytes())
    with pytest.raises(IndexFormatError, match="finds only"):
        Index.verify(folder)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_opening_refuses_another_metric(tmp_path: Path, metric: str, kind: str) -> None:
    for built in {"cosine", "ip", "l2"} - {metric}:
        folder = tmp_path / f"{built}-{kind}"
        Index.build(pool_of(60), HashEncoder(), kind=kind, metric=built).save(folder)  # type: ignore[arg-type]
        sign(folder, manifest_of(folder) | {"metric": metric})
        with pytest.raises(IndexFormatError, match="damaged: the FAISS file"):
            Index.open(folder)


def test_all_kinds_are_sound_as_built(folder: Path) -> None:
    Index.verify(folder)
    for metric in ("ip", "l2"):
        Index.build(pool_of(300), HashEncoder(), kind=manifest_of(folder)["kind"], metric=metric).save(folder)  # type: ignore[arg-type]
        Index.verify(folder)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\0", "a\0b", 10**30, 2**31, -1, "", "ip", "cosine", "l2", "flat", "both", "\ud800", 1.0, 60]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


def places(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        found += [place for key, inner in value.items() for place in places(inner, (*path, key))]
    return found


@given(data=st.data())
def test_any_value_in_the_manifest_is_refused_or_changes_nothing(flat: Path, data: st.DataObject) -> None:
    original = (flat / "manifest.json").read_bytes()
    right = Index.open(flat).search(QUERIES, 5)
    changed = manifest_of(flat)
    place = data.draw(st.sampled_from(places(changed)))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    action = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "replace":
        inner[place[-1]] = data.draw(values)
    elif action == "remove":
        del inner[place[-1]]
    else:
        inner[data.draw(st.text(max_size=5))] = data.draw(values)
    try:
        sign(flat, changed)
        index = Index.open(flat, encoder=HashEncoder())
        found = index.search(QUERIES, 5)
    except (IndexFormatError, IndexMismatchError):
        pass
    else:
        np.testing.assert_array_equal(found[1], right[1])
        np.testing.assert_allclose(found[0], right[0], rtol=1e-6)
    finally:
        (flat / "manifest.json").write_bytes(original)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_deep_nesting_in_a_manifest(flat: Path, tmp_path: Path, depth: int) -> None:
    folder = Path(shutil.copytree(flat, tmp_path / "index"))
    text = (folder / "manifest.json").read_text().replace('"made_with": {', f'"made_with": {"[" * depth}')
    digest = hashlib.sha256(text.replace(manifest_of(folder)["checksum"], "0" * 64).encode()).hexdigest()
    (folder / "manifest.json").write_text(text.replace(manifest_of(folder)["checksum"], digest))
    with pytest.raises(IndexFormatError, match=r"manifest\.json is damaged"):
        Index.open(folder)


def test_a_path_with_a_nul_gets_one_line(flat: Path, tmp_path: Path) -> None:
    index = Index.open(flat)
    uses: list[Callable[[], object]] = [
        lambda: Index.open("a\0b"), lambda: Index.verify("a\0b"), lambda: index.save(f"{tmp_path}/a\0b"),
        lambda: Index.open("\ud83d"), lambda: index.save(f"{tmp_path}/\ud83d"),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(IndexFormatError, match="NUL or a lone surrogate"):
            use()


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_at_the_lock_is_not_followed(flat: Path, tmp_path: Path, there: bool) -> None:
    folder, target = Path(shutil.copytree(flat, tmp_path / "index")), tmp_path / "target"
    if there:
        target.write_text("mine")
    (folder / ".lock").symlink_to(target)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises((IndexFormatError, ConfigError), match="cannot write the index"):
        Index.open(flat).save(folder)
    assert target.exists() == there
    assert not there or target.read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == before
    Index.verify(folder)
