"""Writing the files of a `ragalign.indexes.on_disk.DiskIndex` from batches, of which one is in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign.errors import ConfigError, DataError
from ragalign.generation._quiet import quiet
from ragalign.indexes.faiss_backend import faiss_reason, prepare_training
from ragalign.indexes.manifest import Metric
from ragalign.indexes.vectors import for_metric, measurable
from ragalign.pool import Pool
from ragalign.pool.stored import ROW_GROUP, write_ids

FAISS, LISTS, VECTORS, POOL, IDS = "lists.faiss", "lists.ivf", "vectors.f32", "pool.parquet", "ids.bin"
FILES = (FAISS, LISTS, VECTORS, POOL, IDS)
# FAISS's guideline is 39 or more vectors per centroid.
_PER_CENTROID = 40

Batch = tuple[Pool, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class WrittenRows:
    """What the batches held: the number of rows, the vectors' dimension, and the fingerprint of all ids."""

    n: int
    dimension: int
    fingerprint: str


def write_rows(folder: Path, batches: Iterable[Batch], metric: Metric) -> WrittenRows:
    """Write texts, ids and vectors as they come.

    Raises:
        DataError: there are none, or a batch's vectors do not belong to its texts.
    """
    n, dimension, digest = 0, 0, hashlib.sha256()
    with (folder / VECTORS).open("wb") as file, _grouped(folder / POOL) as write:
        for pool, vectors in batches:
            dimension = dimension or vectors.shape[-1]
            if vectors.shape != (len(pool), dimension) or not measurable(vectors).all():
                raise DataError(
                    f"the batch that starts at demonstration {n:,} needs finite vectors of shape "
                    f"[{len(pool)}, {dimension}], and has some of shape {list(vectors.shape)}; check the encoder"
                )
            file.write(for_metric(vectors, metric).astype("<f4", copy=False).data)
            write(pool.table)
            digest.update("".join(f"{id_}\n" for id_ in pool.ids).encode())
            n += len(pool)
    if not n:
        raise DataError("there is nothing to index: no batch has a demonstration")
    with pq.ParquetFile(folder / POOL) as texts:
        write_ids(folder / IDS, (batch.column(0) for batch in texts.iter_batches(columns=["id"])))
    return WrittenRows(n, dimension, digest.hexdigest())


@contextmanager
def _grouped(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends tables to a Parquet file whose row groups all have `ROW_GROUP` rows, but the last."""
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table, *, last: bool = False) -> None:
        nonlocal writer, waiting
        joined = pa.concat_tables([*waiting, table.replace_schema_metadata(None)])
        end = len(joined) if last else len(joined) // ROW_GROUP * ROW_GROUP
        writer = writer or pq.ParquetWriter(path, joined.schema, compression="zstd", use_dictionary=False)
        if end:
            writer.write_table(joined.slice(0, end), row_group_size=ROW_GROUP)
        waiting = [joined.slice(end)]

    try:
        yield write
        if waiting:
            write(waiting.pop(), last=True)
    finally:
        if writer is not None:
            writer.close()


def check_factory(factory: str, dimension: int) -> None:
    """Check a factory string before anything slow starts.

    Raises:
        ConfigError: FAISS does not know it, or it has no inverted lists.
    """
    faiss = require("faiss", "an index")
    try:
        faiss.extract_index_ivf(faiss.index_factory(dimension, factory))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"FAISS cannot build {factory!r} on disk for {dimension} dimensions: {faiss_reason(error)}; use auto, or a "
            "factory string with inverted lists, such as IVF4096,SQ8"
        ) from None


def write_lists(
    folder: Path, vectors: NDArray[np.float32], factory: str, *, inner_product: bool, shard: int, seed: int
) -> None:
    """Train on a sample, quantise shard by shard, and merge the shards' lists on disk.

    Raises:
        ConfigError: FAISS cannot build this factory string on disk.
    """
    faiss = require("faiss", "an index")
    from faiss.contrib.ondisk import merge_ondisk

    n, dimension = vectors.shape
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    try:
        index = faiss.index_factory(dimension, factory, metric)
        lists = faiss.extract_index_ivf(index)
        kept_alive = prepare_training(faiss, index)
        n_sample = min(n, max(_PER_CENTROID * lists.nlist, 65_536))
        chosen = np.sort(np.random.default_rng(seed).choice(n, n_sample, replace=False))
        index.train(np.ascontiguousarray(vectors[chosen]))
        del kept_alive
        names: list[str] = []
        for start in range(0, n, shard):
            part = faiss.clone_index(index)
            block = np.ascontiguousarray(vectors[start : start + shard])
            part.add_with_ids(block, np.arange(start, start + len(block)))
            names.append(str(folder / f"shard-{len(names)}.faiss"))
            faiss.write_index(part, names[-1])
        with quiet():  # FAISS prints the size of the file to stdout
            merge_ondisk(index, names, str(folder / LISTS))
        faiss.write_index(index, str(folder / FAISS))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"FAISS cannot build {factory!r} on disk from {n:,} x {dimension} vectors: {faiss_reason(error)}"
        ) from None
    for name in names:
        Path(name).unlink()
