"""An index larger than memory: inverted lists, raw vectors and texts stay on disk, and building streams.

A search reads the lists that it probes and the raw vectors of its candidates, from memory-mapped files, and the texts
of its hits by row group. So memory holds the coarse centroids and what the operating system keeps of the files.

The folder has `index.json` (a description, with every file's size and hash), `lists.faiss` (centroids and quantiser),
`lists.ivf` (the inverted lists, FAISS's OnDiskInvertedLists), `vectors.f32` (raw, scaled for the metric),
`pool.parquet` and `ids.bin` (see `ragalign.pool.stored`).
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragalign._locks import LockedError, locked
from ragalign._optional import require
from ragalign._progress import progress
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError, IndexFormatError, IndexMismatchError
from ragalign.generation._quiet import quiet
from ragalign.indexes.disk_writing import (
    FAISS,
    FILES,
    IDS,
    POOL,
    VECTORS,
    Batch,
    check_factory,
    write_lists,
    write_rows,
)
from ragalign.indexes.encoding import load_recorded, require_same_encoder, texts_of
from ragalign.indexes.faiss_backend import Found
from ragalign.indexes.kinds import choose_on_disk
from ragalign.indexes.manifest import EncoderRecord, FileRecord, Metric, TextForm
from ragalign.indexes.store import DISK_MANIFEST, flush, sha256_of
from ragalign.indexes.vectors import for_metric, measurable
from ragalign.pool.stored import StoredPool

_FORMAT = "ragalign-disk-index-3"
# Vectors that are quantised in memory before they go to disk.
_SHARD = 500_000
_PROBES, _CANDIDATES = 64, 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiskManifest:
    """The description of an index on disk.

    Attributes:
        n_demonstrations: number of demonstrations.
        pool_fingerprint: `ragalign.Pool.fingerprint` of all of them.
        dimension: of the vectors.
        metric: ``cosine``, ``ip`` or ``l2``.
        factory: the FAISS factory string.
        text: the encoded texts: the ``instruction``, or ``both`` instruction and response.
        encoder: the encoder that made the vectors; None if they came from elsewhere.
        n_truncated: number of texts longer than the encoder's limit; None if there is no encoder.
        files: the other files, with their sizes and hashes.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    n_demonstrations: int
    pool_fingerprint: str
    dimension: int
    metric: Metric
    factory: str
    text: TextForm = "instruction"
    encoder: EncoderRecord | None = None
    n_truncated: int | None = None
    files: list[FileRecord] = field(default_factory=list)
    format: str = _FORMAT


class DiskIndex:
    """A searchable pool on disk. Create it with `build` or `open`.

    Unlike `Index`, equal demonstrations of different batches are kept; retrieval returns one of them.

    Attributes:
        folder: where it is, absolute.
        manifest: its description.
        pool: the demonstrations.
        vectors: float32 ``[n, d]``, memory-mapped, scaled for the metric.
    """

    def __init__(self, folder: Path, manifest: DiskManifest, faiss_index: Any, encoder: Encoder | None) -> None:
        """Set the parts; use `build` or `open` instead."""
        self.folder, self.manifest = folder, manifest
        self.pool = StoredPool(folder / POOL, folder / IDS, manifest.pool_fingerprint)
        shape = (manifest.n_demonstrations, manifest.dimension)
        self.vectors: NDArray[np.float32] = np.memmap(folder / VECTORS, dtype="<f4", mode="r", shape=shape)
        self._index = faiss_index
        self._encoder = encoder

    @classmethod
    def build(
        cls,
        folder: str | Path,
        batches: Iterable[Batch],
        *,
        encoder: Encoder | None = None,
        factory: str = "auto",
        metric: Metric = "cosine",
        text: TextForm = "instruction",
        shard: int = _SHARD,
        seed: int = 0,
    ) -> Self:
        """Write an index from batches, of which one is in memory at a time.

        Sorting the ids takes another 16 bytes of memory for each demonstration.

        Args:
            folder: where to write; it must not exist.
            batches: demonstrations and their vectors, float32 ``[m, d]``, such as those of `encoded`.
            encoder: the encoder that makes the vectors, which retrieval then uses for questions.
            factory: a FAISS factory string of inverted lists and codes, such as ``IVF65536,PQ48``; ``auto`` chooses
                one for the number of vectors.
            metric: ``cosine``, ``ip`` or ``l2``.
            text: the texts that were encoded: the ``instruction``, or ``both`` instruction and response.
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
        if encoder is not None and factory != "auto":
            check_factory(factory, encoder.dimension)
        target.parent.mkdir(parents=True, exist_ok=True)
        working = target.parent / f".{target.name}.writing"
        n_truncated = 0

        def counted() -> Iterator[Batch]:
            nonlocal n_truncated
            for pool, vectors in batches:
                if encoder is not None:
                    n_truncated += int(encoder.truncated(texts_of(pool, text)).sum())
                yield pool, vectors
                del pool, vectors

        try:
            with locked(target.parent / f".{target.name}.lock"):
                shutil.rmtree(working, ignore_errors=True)  # what a killed build has left
                working.mkdir()
                try:
                    written = write_rows(working, counted(), metric)
                    n, dimension = written.n, written.dimension
                    vectors = np.memmap(working / VECTORS, dtype="<f4", mode="r", shape=(n, dimension))
                    chosen = choose_on_disk(n, dimension) if factory == "auto" else factory
                    write_lists(working, vectors, chosen, inner_product=metric != "l2", shard=shard, seed=seed)
                    manifest = DiskManifest(
                        n, written.fingerprint, dimension, metric, chosen, text,
                        None if encoder is None else EncoderRecord.of(encoder),
                        None if encoder is None else n_truncated, [_record(working / name) for name in FILES],
                    )  # fmt: skip
                    (working / DISK_MANIFEST).write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")
                    flush(working / DISK_MANIFEST)
                    flush(working)
                    working.rename(target)
                    flush(target.parent)
                finally:
                    shutil.rmtree(working, ignore_errors=True)
        except LockedError:
            raise ConfigError(f"another process is building {target}; wait until it is done") from None
        if n_truncated and encoder is not None:
            _log.warning(
                "%d of %d texts are longer than the %s tokens of the encoder %s: their ends are not searched",
                n_truncated, n, encoder.max_tokens, encoder.id,
            )  # fmt: skip
        return cls.open(target, encoder=encoder)

    @classmethod
    def open(cls, folder: str | Path, *, encoder: Encoder | None = None) -> Self:
        """Open an index; nothing large is read.

        Args:
            folder: a folder written by `build`.
            encoder: the encoder for questions; None loads the recorded one on first use.

        Raises:
            IndexFormatError: the folder is not such an index, or a file is missing or has another size.
            IndexMismatchError: the index was built with another encoder.
        """
        from pydantic import TypeAdapter

        path = Path(folder).absolute()
        try:
            content = (path / DISK_MANIFEST).read_bytes()
            if (found_format := json.loads(content).get("format")) != _FORMAT:
                raise ValueError(f"format {found_format!r}")
            manifest = TypeAdapter(DiskManifest).validate_json(content)
            if sorted(record.name for record in manifest.files) != sorted(FILES):
                raise ValueError("its description names other files")
            for record in manifest.files:
                if (found := (path / record.name).stat().st_size) != record.size:
                    raise ValueError(f"{record.name} has {found:,} bytes instead of {record.size:,}")
            faiss = require("faiss", "an index")
            with quiet():  # FAISS prints to stdout that the folder was moved
                index = faiss.read_index(str(path / FAISS), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
            opened = cls(path, manifest, index, encoder)
            if not len(opened.pool) == len(opened) == index.ntotal:
                raise ValueError("its files do not belong together")
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError, pa.ArrowException) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise IndexFormatError(f"{path} is not an index on disk: {reason}; build it again") from None
        if encoder is not None and manifest.encoder is not None:
            require_same_encoder(path, manifest.encoder, encoder)
        return opened

    @classmethod
    def verify(cls, folder: str | Path) -> DiskManifest:
        """Compare every file with its hash, which reads all of them.

        Raises:
            IndexFormatError: the first problem found.
        """
        index = cls.open(folder)
        with progress("verifying", len(FILES), "files") as advance:
            for record in index.manifest.files:
                if sha256_of(index.folder / record.name) != record.sha256:
                    raise IndexFormatError(
                        f"{folder} is damaged: the SHA-256 of {record.name} does not match; build it again"
                    )
                advance(1)
        return index.manifest

    def __len__(self) -> int:
        return self.manifest.n_demonstrations

    def __repr__(self) -> str:
        return f"DiskIndex({len(self):,} demonstrations, {self.manifest.factory}, {self.folder})"

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors, loaded on first use if none was given.

        Raises:
            ConfigError: none is recorded, or it cannot be loaded.
            IndexMismatchError: the loaded encoder differs from the one that made the vectors.
        """
        if self._encoder is None:
            if self.manifest.encoder is None:
                raise ConfigError(f"{self.folder} records no encoder; open it with encoder=...")
            self._encoder = load_recorded(self.manifest.encoder, self.folder)
        return self._encoder

    def search(
        self, vectors: NDArray[np.float32], k: int, *, probes: int = _PROBES, candidates: int = _CANDIDATES
    ) -> Found:
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
            IndexFormatError: the files are damaged.
        """
        if min(k, probes, candidates) < 1:
            raise ConfigError(f"k, probes and candidates must be at least 1, not {k}, {probes} and {candidates}")
        metric, dimension = self.manifest.metric, self.manifest.dimension
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != dimension:
            raise IndexMismatchError(f"queries must have the shape [m, {dimension}], not {queries.shape}")
        if not measurable(queries).all():
            raise DataError("a query vector contains NaN, infinity or huge values; check its text and the encoder")
        queries = for_metric(queries, metric)
        faiss = require("faiss", "an index")
        parameters = faiss.SearchParametersIVF(nprobe=min(probes, faiss.extract_index_ivf(self._index).nlist))
        _, found = self._index.search(queries, min(k * candidates, len(self)), params=parameters)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), k), -1, dtype=np.int64)
        for row, (query, places) in enumerate(zip(queries, found, strict=True)):
            places = np.sort(places[places >= 0])  # in the file's order
            if len(places) and places[-1] >= len(self):
                raise IndexFormatError(f"{self.folder} is damaged: its lists name other vectors; build it again")
            raw = self.vectors[places]
            exact = raw @ query if metric != "l2" else -((raw - query) ** 2).sum(axis=1)
            best = np.lexsort((places, -exact))[:k]
            scores[row, : len(best)], positions[row, : len(best)] = exact[best], places[best]
        return scores, positions


def _record(path: Path) -> FileRecord:
    flush(path)
    return FileRecord(path.name, path.stat().st_size, sha256_of(path))
