"""An index larger than memory: inverted lists, raw vectors and texts stay on disk, and building streams.

A search reads the lists that it probes and the raw vectors of its candidates, from memory-mapped files, and the texts
of its hits in small batches. So memory holds the coarse centroids and what the operating system keeps of the files.

The folder has `index.json` (a description, with every file's size and hash), `lists.faiss` (centroids and quantiser),
`lists.ivf` (the inverted lists, FAISS's OnDiskInvertedLists), `vectors.f32` (raw, scaled for the metric),
`pool.arrow` and `ids.bin` (see `ragalign.pool.stored`).
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragalign._locks import LockedError, locked
from ragalign._optional import require
from ragalign._progress import progress
from ragalign._quiet import quiet
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError, IndexFormatError, IndexMismatchError
from ragalign.indexes.disk_manifest import DiskManifest as DiskManifest
from ragalign.indexes.disk_writing import (
    FAISS,
    FILES,
    IDS,
    POOL,
    VECTORS,
    Batch,
    check_factory,
    publish,
    record_of,
    write_lists,
    write_rows,
)
from ragalign.indexes.encoding import load_recorded, require_same_encoder, texts_of
from ragalign.indexes.faiss_backend import Found
from ragalign.indexes.kinds import choose_on_disk
from ragalign.indexes.manifest import EncoderRecord, Metric, TextForm
from ragalign.indexes.store import DISK_MANIFEST, flush, sha256_of
from ragalign.indexes.vectors import for_metric, measurable
from ragalign.pool.stored import StoredPool

# Vectors that are quantised in memory before they go to disk.
_SHARD = 500_000
PROBES, CANDIDATES = 64, 30
"""Inverted lists to scan, and vectors to compare exactly for each result.

Among ten million vectors with codes of a byte for eight dimensions, ten candidates a result miss 5 % of the ten
nearest, thirty miss 1.3 % and a hundred 0.9 % (benchmarks/disk_index.py).
"""

_log = logging.getLogger(__name__)


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

        Memory that grows with the pool: 20 bytes for each demonstration while ids are sorted (2 GB for 100 million),
        and the sample to train on, 40 vectors for each list (2 GB for the 32,768 lists of 100 million vectors of 384
        dimensions, since ``auto`` has about 4 sqrt(n)). A shard takes the size of its codes.

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
            ConfigError: the folder exists, FAISS cannot build this factory string on disk, or the disk has too little
                room for the lists. If the folder appeared only meanwhile, the finished index is kept beside it.
            DataError: there are no vectors, or a batch's vectors do not belong to it.
            IndexFormatError: a file cannot be written; nothing is left.
        """
        target = Path(folder)
        _refuse_existing(target)
        if metric not in get_args(Metric):
            raise ConfigError(f"metric must be one of {', '.join(get_args(Metric))}, not {metric!r}")
        if encoder is not None and factory != "auto":
            check_factory(factory, encoder.dimension)
        working = target.parent / f".{target.name}.writing"
        n_truncated = 0
        of_source: OSError | None = None

        def counted() -> Iterator[Batch]:
            nonlocal n_truncated, of_source
            try:
                for pool, vectors in batches:
                    if encoder is not None:
                        n_truncated += int(encoder.truncated(texts_of(pool, text)).sum())
                    yield pool, vectors
                    del pool, vectors
            except OSError as error:
                of_source = error
                raise

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.parent / f".{target.name}.lock"):
                _refuse_existing(target)  # another build may have been done before the lock was ours
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
                        None if encoder is None else n_truncated, [record_of(working / name) for name in FILES],
                    )  # fmt: skip
                    (working / DISK_MANIFEST).write_bytes(manifest.to_bytes())
                    flush(working / DISK_MANIFEST)
                    flush(working)
                except BaseException:
                    shutil.rmtree(working, ignore_errors=True)
                    raise
                publish(working, target)
        except LockedError:
            raise ConfigError(f"another process is building {target}; wait until it is done") from None
        except OSError as error:
            if error is of_source:
                raise
            reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
            raise IndexFormatError(f"cannot write the index {target}: {reason}; nothing is left of it") from None
        if n_truncated and encoder is not None:
            _log.warning(
                "%d of %d texts are longer than the %s tokens of the encoder %s: their ends are not searched",
                n_truncated, n, encoder.max_tokens, encoder.id,
            )  # fmt: skip
        return cls.open(target, encoder=encoder)

    @classmethod
    def open(cls, folder: str | Path, *, encoder: Encoder | None = None) -> Self:
        """Open an index. Small files are compared with their hashes, large ones only with their sizes.

        Args:
            folder: a folder written by `build`.
            encoder: the encoder for questions; None loads the recorded one on first use.

        Raises:
            IndexFormatError: the folder is not such an index, or is damaged as far as this can tell; see `verify`.
            IndexMismatchError: the index was built with another encoder.
        """
        path = Path(folder).absolute()
        try:
            manifest = DiskManifest.from_bytes((path / DISK_MANIFEST).read_bytes())
            if sorted(record.name for record in manifest.files) != sorted(FILES):
                raise ValueError("its description names other files")
            for record in manifest.files:
                if (found := (path / record.name).stat().st_size) != record.size:
                    raise ValueError(f"{record.name} has {found:,} bytes instead of {record.size:,}")
                if record.name == FAISS and sha256_of(path / FAISS) != record.sha256:
                    raise ValueError(f"the SHA-256 of {FAISS} does not match")
            faiss = require("faiss", "an index")
            with quiet():  # FAISS prints to stdout that the folder was moved
                index = faiss.read_index(str(path / FAISS), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY)
            metric = faiss.METRIC_L2 if manifest.metric == "l2" else faiss.METRIC_INNER_PRODUCT
            if (index.d, index.metric_type) != (manifest.dimension, metric):
                raise ValueError(f"{FAISS} has another dimension or metric than its description")
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
        self, vectors: NDArray[np.float32], k: int, *, probes: int = PROBES, candidates: int = CANDIDATES
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


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise ConfigError(f"{target} exists; choose another folder, or remove it")
