"""Writing an index on disk: merging, full disks, and what appears at the target meanwhile."""

from __future__ import annotations

import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.errors import ConfigError, IndexFormatError
from ragalign.indexes import DiskIndex, disk_writing
from ragalign.pool import Pool
from ragalign.types import Demonstration

N, DIMENSION = 3_000, 32
Batches = Callable[[], Iterator[tuple[Pool, np.ndarray]]]


@pytest.fixture
def batches() -> Batches:
    vectors = np.random.default_rng(0).standard_normal((N, DIMENSION)).astype(np.float32)

    def made() -> Iterator[tuple[Pool, np.ndarray]]:
        for start in range(0, N, 1_000):
            rows = range(start, start + 1_000)
            yield Pool.from_demonstrations(Demonstration(f"Question {n}?", f"{n}.") for n in rows), vectors[rows]

    return made


@pytest.mark.parametrize("factory", ["IVF16,PQ8", "IVF16_HNSW8,SQ8", "PCA16,IVF16,PQ8"])
def test_merged_lists_are_those_of_faiss(factory: str, tmp_path: Path) -> None:
    import faiss
    from faiss.contrib.ondisk import merge_ondisk

    vectors = np.random.default_rng(0).standard_normal((2_500, DIMENSION)).astype(np.float32)
    ours = faiss.index_factory(DIMENSION, factory)
    disk_writing.train(ours, vectors, seed=0)
    theirs = faiss.clone_index(ours)
    shards = []
    for start in range(0, len(vectors), 900):
        part = faiss.clone_index(ours)
        block = vectors[start : start + 900]
        part.add_with_ids(block, np.arange(start, start + len(block)))
        shards.append(tmp_path / f"{start}.faiss")
        faiss.write_index(part, str(shards[-1]))
    disk_writing._merge(ours, shards, tmp_path / "ours.ivf", len(vectors))
    merge_ondisk(theirs, list(map(str, shards)), str(tmp_path / "theirs.ivf"))
    assert (tmp_path / "ours.ivf").read_bytes() == (tmp_path / "theirs.ivf").read_bytes()
    disk_writing._write_index(ours, tmp_path / "ours.faiss")
    read = faiss.read_index(str(tmp_path / "ours.faiss"))
    assert read.ntotal == len(vectors)
    for mine, its in zip(read.search(vectors[:50], 9), theirs.search(vectors[:50], 9), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize(
    ("part", "limit"),
    [
        ("write_rows", 10_000),  # vectors.f32
        ("sort_ids", 30_000),  # ids.bin
        ("_write_index", 5_000),  # a shard
        ("_merge", 30_000),  # lists.ivf
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, limit: int
) -> None:
    """Files of at most ``limit`` bytes from one step on; FAISS's own writers would ignore it, or be killed."""
    from ragalign.indexes import on_disk

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    where: Any = on_disk if part == "write_rows" else disk_writing
    step = getattr(where, part)

    def limited(*arguments: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return step(*arguments)

    monkeypatch.setattr(where, part, limited)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(IndexFormatError, match=r"cannot write the index .*: File too large; nothing is left") as it:
            DiskIndex.build(tmp_path / "i", batches(), factory="IVF16,PQ8", shard=1_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert "\n" not in str(it.value)
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_noticed_before_training(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 2 * N * (8 + 8)
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(disk_writing.shutil, "disk_usage", lambda _: usage(10**9, 0, free))
    DiskIndex.build(tmp_path / "fits", batches(), factory="IVF16,PQ8")
    free -= 1
    monkeypatch.setattr(disk_writing, "train", None)
    with pytest.raises(ConfigError, match=r"has 0.1 MB free, and an index of 3,000 demonstrations takes at least anot"):
        DiskIndex.build(tmp_path / "i", batches(), factory="IVF16,PQ8")
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]
    free = N * (2 * (8 + 8) + 4 * DIMENSION + 16) - 1
    with pytest.raises(ConfigError, match="free some, or choose another disk"):
        disk_writing.check_space(tmp_path / "not" / "yet", N, DIMENSION, "IVF16,PQ8")
    free += 1
    disk_writing.check_space(tmp_path / "not" / "yet", N, DIMENSION, "IVF16,PQ8")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_finished_index_is_kept_if_its_place_is_taken_meanwhile(batches: Batches, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "i"

    def source() -> Iterator[tuple[Pool, np.ndarray]]:
        yield from batches()
        if kind == "folder":
            target.mkdir()
            (target / "something").write_text("else")
        elif kind == "file":
            target.write_text("something else")
        else:
            target.symlink_to(tmp_path / "nowhere")
        (tmp_path / "i-2").mkdir()  # this place is taken, too

    with pytest.raises(ConfigError, match=r"cannot be renamed to .*/i \(.*\); it is kept in .*/i-3: ") as refused:
        DiskIndex.build(target, source(), factory="IVF16,PQ8")
    assert "\n" not in str(refused.value)
    assert DiskIndex.verify(tmp_path / "i-3").n_demonstrations == N
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i", "i-2", "i-3"]
    with pytest.raises(ConfigError, match="i exists"):
        DiskIndex.build(target, iter([]))


def test_an_index_that_was_built_before_the_lock_was_free_is_not_built_again(
    batches: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragalign.indexes import on_disk

    target, locked = tmp_path / "i", on_disk.locked

    def taken(path: Path) -> Any:
        target.mkdir()
        (target / "index.json").write_text("{}")
        return locked(path)

    def never() -> Iterator[tuple[Pool, np.ndarray]]:
        raise AssertionError("it was read")
        yield

    monkeypatch.setattr(on_disk, "locked", taken)
    with pytest.raises(ConfigError, match="i exists"):
        DiskIndex.build(target, never())
