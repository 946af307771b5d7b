"""Writing the files of a `ragalign.indexes.on_disk.DiskIndex` from batches, of which one is in memory at a time."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign.errors import ConfigError, DataError
from ragalign.indexes.faiss_backend import faiss_reason, prepare_training
from ragalign.indexes.kinds import choose_on_disk
from ragalign.indexes.manifest import FileRecord, Metric
from ragalign.indexes.store import flush, sha256_of
from ragalign.indexes.vectors import for_metric, measurable
from ragalign.pool import Pool
from ragalign.pool.stored import ID_ROW, id_numbers, sort_ids, writing_texts

FAISS, LISTS, VECTORS, POOL, IDS = "lists.faiss", "lists.ivf", "vectors.f32", "pool.arrow", "ids.bin"
FILES = (FAISS, LISTS, VECTORS, POOL, IDS)
# FAISS's guideline is 39 or more vectors per centroid. Codes are trained on at most 65,536 vectors.
_PER_CENTROID, _SAMPLE_MIN = 40, 65_536
# Each code is in a list beside its row's number.
_ROW_BYTES = 8

Batch = tuple[Pool, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """The content of the batches: number of rows, the vectors' dimension, and the fingerprint of all ids."""

    n: int
    dimension: int
    fingerprint: str


def write_rows(folder: Path, batches: Iterable[Batch], metric: Metric) -> WrittenRows:
    """Write texts, ids and vectors as they come.

    Raises:
        DataError: there are none, or a batch's vectors do not belong to its texts.
    """
    n, dimension, digest = 0, 0, hashlib.sha256()
    with (
        (folder / VECTORS).open("wb") as file,
        (folder / IDS).open("wb") as ids,
        writing_texts(folder / POOL) as write,
    ):
        for pool, vectors in batches:
            dimension = dimension or vectors.shape[-1]
            if vectors.shape != (len(pool), dimension) or not measurable(vectors).all():
                raise DataError(
                    f"the batch that starts at demonstration {n:,} needs finite vectors of shape "
                    f"[{len(pool)}, {dimension}], and has some of shape {list(vectors.shape)}; check the encoder"
                )
            file.write(for_metric(vectors, metric).astype("<f4", copy=False).data)
            write(pool.table)
            ids.write(id_numbers(pool.ids).data)
            digest.update("".join(f"{id_}\n" for id_ in pool.ids).encode())
            n += len(pool)
    if not n:
        raise DataError("there is nothing to index: no batch has a demonstration")
    sort_ids(folder / IDS)
    return WrittenRows(n, dimension, digest.hexdigest())


def check_factory(factory: str, dimension: int) -> Any:
    """Check a factory string before anything slow starts.

    Returns:
        An untrained FAISS index of this kind.

    Raises:
        ConfigError: FAISS does not know it, or it does not consist of inverted lists of codes.
    """
    faiss = require("faiss", "an index")
    try:
        index = inner = faiss.index_factory(dimension, factory)
        if isinstance(index, faiss.IndexPreTransform):
            inner = faiss.downcast_index(index.index)
        lists = getattr(inner, "invlists", None)
        if not isinstance(lists, faiss.InvertedLists) or isinstance(inner, faiss.IndexIVFPQR):
            raise RuntimeError("it does not consist of inverted lists of codes")
        if not isinstance(faiss.downcast_InvertedLists(lists), faiss.ArrayInvertedLists):
            raise RuntimeError("its codes are packed in blocks")
        return index
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"FAISS cannot build {factory!r} on disk for {dimension} dimensions: {faiss_reason(error)}; use auto, or a "
            "factory string with inverted lists, such as IVF4096,SQ8"
        ) from None


def check_space(folder: Path, n: int, dimension: int, factory: str = "auto", *, rows_written: bool = False) -> None:
    """Check that the disk has room for an index, as far as its size is known: texts are not counted.

    Args:
        folder: where it will be; it need not exist.
        n: demonstrations.
        dimension: of the vectors.
        factory: as for `ragalign.indexes.DiskIndex.build`.
        rows_written: whether vectors and ids are there already.

    Raises:
        ConfigError: there is too little room, or FAISS does not know the factory string.
    """
    index = check_factory(choose_on_disk(n, dimension) if factory == "auto" else factory, dimension)
    code = require("faiss", "an index").extract_index_ivf(index).code_size
    needed = 2 * n * (code + _ROW_BYTES)  # the shards' lists and the merged ones
    if not rows_written:
        needed += n * (dimension * 4 + ID_ROW.itemsize)
    at = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if (free := shutil.disk_usage(at).free) < needed:
        raise ConfigError(
            f"{at} has {_size(free)} free, and an index of {n:,} demonstrations takes at least another "
            f"{_size(needed)}; free some, or choose another disk"
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:,.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:,.1f} MB"


def sample_size(n: int, n_lists: int) -> int:
    """How many of n vectors lists and codes are trained on; all of them are in memory at once."""
    return min(n, max(_PER_CENTROID * n_lists, _SAMPLE_MIN))


def write_lists(
    folder: Path, vectors: NDArray[np.float32], factory: str, *, inner_product: bool, shard: int, seed: int
) -> None:
    """Train on a sample, quantise shard by shard, and merge the shards' lists on disk.

    Raises:
        ConfigError: FAISS cannot build this factory string on disk, or there is too little room.
        OSError: a file cannot be written.
    """
    faiss = require("faiss", "an index")
    n, dimension = vectors.shape
    check_space(folder.parent, n, dimension, factory, rows_written=True)
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    try:
        index = faiss.index_factory(dimension, factory, metric)
        train(index, vectors, seed)
        shards: list[Path] = []
        for start in range(0, n, shard):
            part = faiss.clone_index(index)
            block = np.ascontiguousarray(vectors[start : start + shard])
            part.add_with_ids(block, np.arange(start, start + len(block)))
            shards.append(folder / f"shard-{len(shards)}.faiss")
            _write_index(part, shards[-1])
        _merge(index, shards, folder / LISTS, n)
        _write_index(index, folder / FAISS)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"FAISS cannot build {factory!r} on disk from {n:,} x {dimension} vectors: {faiss_reason(error)}"
        ) from None
    for path in shards:
        path.unlink()


def train(index: Any, vectors: NDArray[np.float32], seed: int) -> None:
    """Train a FAISS index on a sample of vectors, `sample_size` of them."""
    faiss = require("faiss", "an index")
    kept_alive = prepare_training(faiss, index)
    n_sample = sample_size(len(vectors), faiss.extract_index_ivf(index).nlist)
    chosen = np.sort(np.random.default_rng(seed).choice(len(vectors), n_sample, replace=False))
    index.train(np.ascontiguousarray(vectors[chosen]))
    del kept_alive


def _write_index(index: Any, path: Path) -> None:
    faiss = require("faiss", "an index")
    # As in `faiss_backend`: with a path, FAISS would ignore errors when it closes the file.
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def _merge(index: Any, shards: Sequence[Path], path: Path, n: int) -> None:
    """Write the shards' lists one after another, and give them to the trained index.

    FAISS's own `merge_ondisk` writes to a mapped file: on a full disk, the process would be killed without a word.
    """
    faiss = require("faiss", "an index")
    target = faiss.extract_index_ivf(index)
    parts = [faiss.read_index(str(shard), faiss.IO_FLAG_MMAP) for shard in shards]
    lists = [faiss.extract_index_ivf(part).invlists for part in parts]
    sizes = np.zeros(target.nlist, dtype=np.uint64)
    with path.open("wb") as file:
        for number in range(target.nlist):
            held = [(each, size) for each in lists if (size := each.list_size(number))]
            for each, size in held:
                file.write(faiss.rev_swig_ptr(each.get_codes(number), size * target.code_size).data)
            for each, size in held:
                file.write(faiss.rev_swig_ptr(each.get_ids(number), size).data)
            sizes[number] = sum(size for _, size in held)
    merged = faiss.OnDiskInvertedLists(target.nlist, target.code_size, str(path))
    merged.set_all_lists_sizes(faiss.swig_ptr(sizes))
    merged.totsize = path.stat().st_size
    index.ntotal = target.ntotal = n
    target.replace_invlists(merged, True)
    merged.this.disown()


def record_of(path: Path) -> FileRecord:
    """Flush a file to disk, and describe it."""
    flush(path)
    return FileRecord(path.name, path.stat().st_size, sha256_of(path))


def publish(working: Path, target: Path) -> None:
    """Give a finished folder its name; if that fails, keep it beside the target under a name of its own.

    Raises:
        ConfigError: it failed, because something appeared at the target for instance.
    """
    try:
        working.rename(target)
    except OSError as error:
        kept = working
        with suppress(OSError):
            free = (path for number in count(2) if not (path := target.with_name(f"{target.name}-{number}")).exists())
            kept = working.rename(next(free))
        raise ConfigError(
            f"the finished index cannot be renamed to {target} ({error.strerror}); it is kept in {kept}: use it there, "
            "or rename it"
        ) from None
    with suppress(OSError):  # the index is complete, whenever its name reaches the disk
        flush(target.parent)
