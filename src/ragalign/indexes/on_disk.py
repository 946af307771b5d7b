"""An index larger than memory: IVF-PQ lists, raw vectors and texts stay on disk, and building streams.

A search reads the lists that it probes and the raw vectors of its candidates, from memory-mapped files, and the texts
of its hits by row group. So memory holds the coarse centroids and what the operating system keeps of the files.

The folder has `index.json` (what is here, and every file's size), `lists.faiss` (centroids and quantiser), `lists.ivf`
(the inverted lists, FAISS's OnDiskInvertedLists), `vectors.f32` (raw, scaled for the metric) and `pool.parquet`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign.errors import ConfigError, DataError, IndexFormatError, IndexMismatchError
from ragalign.indexes.faiss_backend import Found
from ragalign.indexes.manifest import Metric
from ragalign.indexes.vectors import for_metric, measurable
from ragalign.pool import Pool
from ragalign.types import Demonstration, Hit

_FORMAT = "ragalign-disk-index-1"
_ABOUT, _FAISS, _LISTS, _VECTORS, _POOL = "index.json", "lists.faiss", "lists.ivf", "vectors.f32", "pool.parquet"
# Rows that are read for one text, and row groups that are kept.
_ROW_GROUP, _GROUPS_KEPT = 2048, 64
# Vectors that are quantised in memory before they go to disk.
_SHARD = 500_000
# FAISS's guideline is 39 or more vectors per centroid.
_PER_CENTROID = 40

Batch = tuple[Pool, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class DiskIndexAbout:
    """What a folder holds.

    Attributes:
        n: number of demonstrations.
        dimension: of the vectors.
        metric: ``cosine``, ``ip`` or ``l2``.
        factory: the FAISS factory string.
        encoder: the fingerprint of the encoder; empty if unknown.
        files: size of each file in bytes.
    """

    n: int
    dimension: int
    metric: Metric
    factory: str
    encoder: str = ""
    format: str = _FORMAT
    files: dict[str, int] = field(default_factory=dict)


class DiskIndex:
    """A searchable pool on disk. Create it with `build` or `open`.

    Unlike `Index`, equal demonstrations of different batches are kept; a search returns one of them.
    """

    def __init__(self, folder: Path, about: DiskIndexAbout, faiss_index: Any) -> None:
        """Set the parts; use `build` or `open` instead."""
        self.folder, self.about = folder, about
        self._index = faiss_index
        shape = (about.n, about.dimension)
        self._vectors: NDArray[np.float32] = np.memmap(folder / _VECTORS, dtype="<f4", mode="r", shape=shape)
        self._pool = pq.ParquetFile(folder / _POOL, memory_map=True)
        self._read = lru_cache(_GROUPS_KEPT)(self._pool.read_row_group)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        batches: Iterable[Batch],
        *,
        factory: str,
        metric: Metric = "cosine",
        encoder: str = "",
        shard: int = _SHARD,
        seed: int = 0,
    ) -> Self:
        """Write an index from batches, of which one is in memory at a time.

        Args:
            folder: where to write; it must not exist.
            batches: demonstrations and their vectors, float32 ``[m, d]``, such as those of an encoder.
            factory: a FAISS factory string of inverted lists and codes, such as ``IVF65536,PQ48``.
            metric: ``cosine``, ``ip`` or ``l2``.
            encoder: the fingerprint of the encoder, which `search` then asks for.
            shard: vectors to quantise in memory at a time.
            seed: chooses the vectors to train on.

        Raises:
            ConfigError: the folder exists, or FAISS cannot build this factory string on disk.
            DataError: there are no vectors, or a batch's vectors do not belong to it.
        """
        target = Path(folder)
        if target.exists():
            raise ConfigError(f"{target} exists; choose another folder, or remove it")
        if metric not in get_args(Metric):
            raise ConfigError(f"metric must be one of {', '.join(get_args(Metric))}, not {metric!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        working = Path(mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            n, dimension = _write_rows(working, batches, metric)
            vectors = np.memmap(working / _VECTORS, dtype="<f4", mode="r", shape=(n, dimension))
            _write_lists(working, vectors, factory, inner_product=metric != "l2", shard=shard, seed=seed)
            files = {name: (working / name).stat().st_size for name in (_FAISS, _LISTS, _VECTORS, _POOL)}
            about = DiskIndexAbout(n, dimension, metric, factory, encoder, files=files)
            (working / _ABOUT).write_text(json.dumps(asdict(about), indent=2), encoding="utf-8")
            working.rename(target)
        finally:
            shutil.rmtree(working, ignore_errors=True)
        return cls.open(target)

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open an index; nothing large is read.

        Raises:
            IndexFormatError: the folder is not such an index, or a file is missing or has another size.
        """
        path = Path(folder)
        try:
            about = DiskIndexAbout(**json.loads((path / _ABOUT).read_text(encoding="utf-8")))
            if about.format != _FORMAT:
                raise ValueError(f"format {about.format!r}")
            for name, size in about.files.items():
                if (found := (path / name).stat().st_size) != size:
                    raise ValueError(f"{name} has {found:,} bytes instead of {size:,}")
            faiss = require("faiss", "an index")
            index = faiss.read_index(str(path / _FAISS), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
            return cls(path, about, index)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, pa.ArrowException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise IndexFormatError(f"{path} is not an index on disk: {reason}; build it again") from None

    def __len__(self) -> int:
        return self.about.n

    def search(self, vectors: NDArray[np.float32], k: int, *, probes: int = 64, candidates: int = 10) -> Found:
        """Find about the k demonstrations closest to each vector.

        Args:
            vectors: query vectors ``[m, d]``.
            k: results per query.
            probes: inverted lists to scan per query.
            candidates: per result, how many to take from the lists and compare by their raw vectors.

        Returns:
            Scores, float32 ``[m, k]``, higher is closer, exact for each result; and positions, int64 ``[m, k]``. Rows
            end with -inf and -1 if the lists held fewer.

        Raises:
            ConfigError: k, probes or candidates is below 1.
            IndexMismatchError: the vectors have another dimension.
            DataError: a vector contains NaN, infinity or huge values.
        """
        if min(k, probes, candidates) < 1:
            raise ConfigError(f"k, probes and candidates must be at least 1, not {k}, {probes} and {candidates}")
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.about.dimension:
            raise IndexMismatchError(f"queries must have the shape [m, {self.about.dimension}], not {queries.shape}")
        if not measurable(queries).all():
            raise DataError("a query vector contains NaN, infinity or huge values; check its text and the encoder")
        queries = for_metric(queries, self.about.metric)
        faiss = require("faiss", "an index")
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, faiss.extract_index_ivf(self._index).nlist))
        _, found = self._index.search(queries, min(k * candidates, len(self)), params=parameters)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), k), -1, dtype=np.int64)
        for row, (query, places) in enumerate(zip(queries, found, strict=True)):
            places = np.sort(places[places >= 0])  # in the file's order
            raw = self._vectors[places]
            exact = raw @ query if self.about.metric != "l2" else -((raw - query) ** 2).sum(axis=1)
            best = np.lexsort((places, -exact))[:k]
            scores[row, : len(best)], positions[row, : len(best)] = exact[best], places[best]
        return scores, positions

    def hits(self, vectors: NDArray[np.float32], k: int, **options: int) -> list[list[tuple[Hit, Demonstration]]]:
        """The k closest demonstrations of each vector, without repetitions, with their texts; arguments as `search`."""
        scores, positions = self.search(vectors, 2 * k, **options)
        found = []
        for row_scores, row in zip(scores, positions, strict=True):
            different: dict[str, tuple[float, Demonstration]] = {}
            for score, place in zip(row_scores.tolist(), row.tolist(), strict=True):
                if place >= 0 and len(different) < k:
                    demonstration = self[place]
                    different.setdefault(demonstration.id, (score, demonstration))
            ranked = enumerate(different.items(), 1)
            found.append([(Hit(id_, score, rank), each) for rank, (id_, (score, each)) in ranked])
        return found

    def __getitem__(self, position: int) -> Demonstration:
        """The demonstration at a position; reads its row group."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self):,}")
        [demonstration] = Pool(self._read(position // _ROW_GROUP).slice(position % _ROW_GROUP, 1))
        return demonstration


def _write_rows(folder: Path, batches: Iterable[Batch], metric: Metric) -> tuple[int, int]:
    """Write texts and vectors as they come; returns the shape of the vectors."""
    n, dimension = 0, 0
    with (folder / _VECTORS).open("wb") as file, _grouped(folder / _POOL) as write:
        for pool, vectors in batches:
            dimension = dimension or vectors.shape[-1]
            if vectors.shape != (len(pool), dimension) or not measurable(vectors).all():
                raise DataError(
                    f"the batch at {n:,} has {len(pool):,} demonstrations and vectors of shape {list(vectors.shape)}, "
                    "or some that are not finite"
                )
            file.write(for_metric(vectors, metric).astype("<f4", copy=False).data)
            write(pool.table)
            n += len(pool)
    if not n:
        raise DataError("there is nothing to index: no batch has a demonstration")
    return n, dimension


@contextmanager
def _grouped(path: Path) -> Iterator[Any]:
    """A function that appends tables to a Parquet file whose row groups all have `_ROW_GROUP` rows, but the last."""
    waiting: list[pa.Table] = []
    writer: pq.ParquetWriter | None = None

    def write(table: pa.Table, *, last: bool = False) -> None:
        nonlocal writer, waiting
        joined = pa.concat_tables([*waiting, table.replace_schema_metadata(None)])
        end = len(joined) if last else len(joined) // _ROW_GROUP * _ROW_GROUP
        writer = writer or pq.ParquetWriter(path, joined.schema, compression="zstd", use_dictionary=False)
        if end:
            writer.write_table(joined.slice(0, end), row_group_size=_ROW_GROUP)
        waiting = [joined.slice(end)]

    try:
        yield write
        if waiting:
            write(waiting.pop(), last=True)
    finally:
        if writer is not None:
            writer.close()


def _write_lists(
    folder: Path, vectors: NDArray[np.float32], factory: str, *, inner_product: bool, shard: int, seed: int
) -> None:
    """Train on a sample, quantise shard by shard, and merge the shards' lists on disk."""
    faiss = require("faiss", "an index")
    from faiss.contrib.ondisk import merge_ondisk

    n, dimension = vectors.shape
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    try:
        index = faiss.index_factory(dimension, factory, metric)
        lists = faiss.extract_index_ivf(index)
        lists.cp.min_points_per_centroid = 1  # FAISS would warn on stderr
        n_sample = min(n, max(_PER_CENTROID * lists.nlist, 65_536))
        chosen = np.sort(np.random.default_rng(seed).choice(n, n_sample, replace=False))
        index.train(np.ascontiguousarray(vectors[chosen]))
        names: list[str] = []
        for start in range(0, n, shard):
            part = faiss.clone_index(index)
            block = np.ascontiguousarray(vectors[start : start + shard])
            part.add_with_ids(block, np.arange(start, start + len(block)))
            names.append(str(folder / f"shard-{len(names)}.faiss"))
            faiss.write_index(part, names[-1])
        merge_ondisk(index, names, str(folder / _LISTS))
        faiss.write_index(index, str(folder / _FAISS))
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split()).rsplit(": ", 1)[-1]
        raise ConfigError(
            f"FAISS cannot build {factory!r} on disk from {n:,} x {dimension} vectors: {reason}"
        ) from None
    for name in names:
        Path(name).unlink()


def read_batches(pools: Sequence[str | Path], encode: Any, *, rows: int = 50_000) -> Iterator[Batch]:
    """Batches of Parquet files in a pool's own columns, for `DiskIndex.build`: one at a time is in memory.

    Args:
        pools: files that `Pool.save` wrote.
        encode: makes vectors ``[m, d]`` of instructions, such as ``encoder.encode``.
        rows: demonstrations per batch.
    """
    for path in pools:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows):
                pool = Pool(pa.Table.from_batches([batch]).replace_schema_metadata(None))
                yield pool, encode(pool.instructions)
