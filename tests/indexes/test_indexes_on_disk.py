"""The index larger than memory: hits, texts by row, building from batches, and damaged folders."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError, IndexFormatError, IndexMismatchError
from ragalign.indexes import DiskIndex, DiskManifest, Index
from ragalign.indexes.batches import encoded, stored_pools
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.types import Demonstration

N, DIMENSION = 9_000, 32


def made(n: int = N, seed: int = 0) -> np.ndarray:
    """Vectors in clusters."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, DIMENSION))
    return (centres[random.integers(0, 40, n)] + 0.4 * random.standard_normal((n, DIMENSION))).astype(np.float32)


def pool_of(start: int, end: int) -> Pool:
    return Pool.from_demonstrations(
        [Demonstration(f"Question {n}?", f"Answer {n}.", source="made", source_id=str(n)) for n in range(start, end)]
    )


def batches(vectors: np.ndarray, size: int = 1_700) -> Iterator[tuple[Pool, np.ndarray]]:
    for start in range(0, len(vectors), size):
        end = min(start + size, len(vectors))
        yield pool_of(start, end), vectors[start:end]


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return made()


@pytest.fixture(scope="module")
def folder(vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "index"
    DiskIndex.build(path, batches(vectors), factory="IVF64,PQ8", shard=2_000)
    return path


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_scores_are_exact_and_hits_nearly_those_of_exact_search(
    vectors: np.ndarray, tmp_path: Path, metric: str
) -> None:
    index = DiskIndex.build(tmp_path / "i", batches(vectors), factory="IVF64,PQ8", metric=metric, shard=2_000)  # type: ignore[arg-type]
    queries = made(100, seed=1)
    scores, positions = index.search(queries, 10, probes=32, candidates=20)
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if metric == "cosine" else vectors
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True) if metric == "cosine" else queries
    exact = -((asked[:, None] - rows[None]) ** 2).sum(2) if metric == "l2" else asked @ rows.T
    np.testing.assert_allclose(scores, np.take_along_axis(exact, positions, axis=1), rtol=1e-3, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    best = np.argsort(-exact, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(positions, best, strict=True)])
    assert recall > 0.95
    # Without the raw vectors, the codes alone would not do.
    coarse = index.search(queries, 10, probes=32, candidates=1)[1]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(coarse, best, strict=True)]) < recall


def test_lists_are_mapped_and_texts_are_read_by_row(folder: Path, vectors: np.ndarray) -> None:
    import faiss

    index = DiskIndex.open(folder)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index._index).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    assert len(index) == N
    for position in (0, 63, 64, 5000, N - 1):
        [expected] = pool_of(position, position + 1)
        assert index.pool[position] == expected
        assert index.pool.position(expected.id) == position
        assert index.pool.get(expected.id) == expected
    scores, positions = index.search(vectors[[4321]], 3)
    assert positions[0][0] == 4321
    assert scores[0][0] == pytest.approx(1.0, abs=1e-4)
    assert index.pool.fingerprint == pool_of(0, N).fingerprint
    for wrong in ("0" * 16, "f" * 16, "no id", "", "é" * 16):
        with pytest.raises(DataError, match="no demonstration with the id"):
            index.pool.get(wrong)
    with pytest.raises(IndexError):
        index.pool[N]


def test_it_finds_what_an_index_in_memory_finds(minilm: Encoder, tmp_path: Path) -> None:
    pool = Pool.load(data_folder() / "starter.jsonl")
    pool.save(tmp_path / "pool.parquet")
    source = encoded(stored_pools([tmp_path / "pool.parquet"], rows=60), minilm)
    disk = DiskIndex.build(tmp_path / "disk", source, factory="IVF4,PQ48x4", encoder=minilm)
    memory = Index.build(pool, minilm)
    queries = minilm.encode(["How do I bake bread?", "Write a poem about rain."], kind="query")
    expected = [[pool.ids[place] for place in row] for row in memory.search(queries, 5)[1]]
    found = disk.search(queries, 5, probes=4, candidates=20)[1]
    assert [[disk.pool[place].id for place in row] for row in found] == expected


def test_one_batch_is_in_memory_at_a_time(vectors: np.ndarray, tmp_path: Path) -> None:
    import weakref

    alive: list[weakref.ref[Pool]] = []

    def watched() -> Iterator[tuple[Pool, np.ndarray]]:
        for start in range(0, 6_000, 1_000):
            pool = pool_of(start, start + 1_000)
            assert sum(reference() is not None for reference in alive) <= 1
            alive.append(weakref.ref(pool))
            yield pool, vectors[start : start + 1_000]
            del pool

    assert len(DiskIndex.build(tmp_path / "i", watched(), factory="IVF16,PQ8")) == 6_000


def broken(vectors: np.ndarray) -> Iterator[tuple[Pool, np.ndarray]]:
    yield pool_of(0, 10), vectors[:10]
    raise OSError("the disk of the source")


def test_nothing_is_left_of_a_build_that_fails(vectors: np.ndarray, tmp_path: Path) -> None:
    bad = vectors[:300].copy()
    bad[3, 3] = np.nan
    for source, factory, error, message in (
        (broken(vectors), "IVF4,PQ8", OSError, "the disk"),
        (iter([]), "IVF4,PQ8", DataError, "nothing to index"),
        (iter([(pool_of(0, 5), vectors[:4])]), "IVF4,PQ8", DataError, r"shape \[5, 32\]"),
        (iter([(pool_of(0, 300), bad)]), "IVF4,PQ8", DataError, "finite vectors of shape"),
        (batches(vectors[:900]), "Flat", ConfigError, "Flat"),
        (batches(vectors[:900]), "nonsense", ConfigError, "nonsense"),
        (batches(vectors[:900]), "IVF2000,PQ8", ConfigError, "IVF2000"),
    ):
        with pytest.raises(error, match=message):
            DiskIndex.build(tmp_path / "i", source, factory=factory)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []
    (tmp_path / "i").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        DiskIndex.build(tmp_path / "i", batches(vectors), factory="IVF4,PQ8")


def test_what_a_killed_build_left_is_removed_and_two_builds_are_one_too_many(
    vectors: np.ndarray, tmp_path: Path
) -> None:
    left = tmp_path / ".i.writing"
    left.mkdir()
    (left / "vectors.f32").write_bytes(b"half of it")

    def source() -> Iterator[tuple[Pool, np.ndarray]]:
        with pytest.raises(ConfigError, match="another process is building"):
            DiskIndex.build(tmp_path / "i", batches(vectors), factory="IVF4,PQ8")
        yield from batches(vectors[:900])

    umask = os.umask(0o022)
    try:
        DiskIndex.build(tmp_path / "i", source(), factory="IVF4,PQ8")
    finally:
        os.umask(umask)
    assert [path.name for path in tmp_path.iterdir()] == ["i"]
    assert (tmp_path / "i").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "i").iterdir()} == {0o644}


@pytest.mark.parametrize("name", ["lists.faiss", "lists.ivf", "vectors.f32", "pool.arrow", "ids.bin"])
def test_verify_notices_every_changed_byte(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert len(DiskIndex.open(copy)) == DiskIndex.verify(copy).n_demonstrations
    with (copy / name).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        [last] = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(IndexFormatError, match=name if name == "lists.ivf" else "."):
        DiskIndex.verify(copy)


def test_lists_that_name_other_vectors_are_damage(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    lists = copy / "lists.ivf"
    lists.write_bytes(b"\x7f" * lists.stat().st_size)
    with pytest.raises(IndexFormatError, match="its lists name other vectors"):
        DiskIndex.open(copy).search(made(1), 3)


def test_a_factory_is_checked_before_anything_is_encoded(minilm: Encoder, tmp_path: Path) -> None:
    def never() -> Iterator[tuple[Pool, np.ndarray]]:
        raise AssertionError("it was read")
        yield

    for factory in (
        *("flat", "Flat", "HNSW32", "nonsense", "IVF4,PQ7"),
        # More than lists of codes, or packed codes: their parts would be lost in merging.
        *("IVF4,PQ8+8", "IVF4,PQ8,RFlat", "IDMap,IVF4,Flat", "IVF4,PQ8x4fs"),
    ):
        with pytest.raises(ConfigError, match=f"cannot build '{re.escape(factory)}'"):
            DiskIndex.build(tmp_path / "i", never(), factory=factory, encoder=minilm)
    assert list(tmp_path.iterdir()) == []


def test_ids_of_an_edited_file_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pool_of(0, 5).save(path)
    table = pq.read_table(path)
    texts = table["instruction"].to_pylist()
    edited = table.set_column(1, table.schema.field(1), pa.array([*texts[:3], "Another?", texts[4]], pa.large_string()))
    pq.write_table(edited, path)
    for read in (lambda: list(stored_pools([path], rows=2)), lambda: Pool.load(path)):
        with pytest.raises(DataError, match="row 4: the id is not that of its texts"):
            read()


def test_damaged_folders_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refuses(path: Path) -> None:
        with pytest.raises(IndexFormatError) as refused:
            DiskIndex.open(path)
        assert "\n" not in str(refused.value)

    refuses(tmp_path / "none")
    for name in ("lists.faiss", "lists.ivf", "vectors.f32", "pool.arrow", "ids.bin", "index.json"):
        copy = shutil.copytree(folder, tmp_path / name)
        with (copy / name).open("r+b") as file:
            file.truncate((copy / name).stat().st_size // 2)
        refuses(copy)
    other = shutil.copytree(folder, tmp_path / "other")
    about = json.loads((other / "index.json").read_text())
    for changed in ({"format": "ragalign-disk-index-3"}, {"format": None}, {"n_truncated": 3}, {"checksum": "0" * 64}):
        (other / "index.json").write_text(json.dumps(about | changed, indent=2))
        refuses(other)
    (other / "index.json").write_text(json.dumps(about, indent=2))
    assert len(DiskIndex.open(other)) == N
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert DiskIndex.open(moved).search(made(1), 3)[1].min() >= 0


@pytest.mark.parametrize("name", ["lists.faiss", "index.json"])
def test_small_files_are_compared_with_their_hash_on_opening(folder: Path, tmp_path: Path, name: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = bytearray((copy / name).read_bytes())
    for place in range(0, len(content), max(1, len(content) // 25)):
        content[place] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(IndexFormatError, match="build it again"):
            DiskIndex.open(copy)
        content[place] ^= 1


@pytest.mark.parametrize(("key", "value"), [("metric", "l2"), ("dimension", 16), ("n_demonstrations", 8_999)])
def test_a_description_of_another_index_is_refused(folder: Path, tmp_path: Path, key: str, value: object) -> None:
    """As if the files of two builds were mixed, with a valid checksum."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    manifest = DiskManifest.from_bytes((copy / "index.json").read_bytes())
    (copy / "index.json").write_bytes(replace(manifest, **{key: value}).to_bytes())
    with pytest.raises(IndexFormatError, match="build it again"):
        DiskIndex.open(copy)


def test_wrong_queries(folder: Path) -> None:
    index = DiskIndex.open(folder)
    with pytest.raises(IndexMismatchError, match=r"\[m, 32\]"):
        index.search(np.zeros((1, 31), np.float32), 3)
    with pytest.raises(ConfigError, match="at least 1"):
        index.search(np.zeros((1, 32), np.float32), 0)
    with pytest.raises(DataError, match="NaN"):
        index.search(np.full((1, 32), np.nan, np.float32), 3)
    assert (index.search(np.ones((1, 32), np.float32), 9, probes=1, candidates=1)[1] >= -1).all()
