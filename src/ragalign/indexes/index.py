"""The index: a pool, its vectors, and a FAISS index of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.errors import (
    ConfigError,
    IndexFormatError,
    MissingDependencyError,
    RagalignError,
)
from ragalign.indexes import checking, faiss_backend, store
from ragalign.indexes.encoding import encode_pool, load_recorded, require_same_encoder, texts_of
from ragalign.indexes.faiss_backend import FaissIndex, Found
from ragalign.indexes.kinds import choose
from ragalign.indexes.manifest import EncoderRecord, Manifest, Metric, TextForm
from ragalign.indexes.searching import Searcher
from ragalign.indexes.vectors import for_metric, read_vectors
from ragalign.pool import Pool
from ragalign.runs.machine import version


class Index:
    """A searchable pool. Create it with `build` or `open`; it is immutable."""

    def __init__(
        self,
        pool: Pool,
        vectors: NDArray[np.float32],
        faiss: FaissIndex,
        manifest: Manifest,
        encoder: Encoder | None,
        origin: tuple[Path, str] | None = None,
    ) -> None:
        """Set the parts; use `build` or `open` instead. ``origin`` is the folder and its checksum."""
        self.pool = pool
        self.vectors = vectors
        self.manifest = manifest
        self._faiss = faiss
        self._encoder = encoder
        self._origin = origin
        self._searcher = Searcher(vectors, faiss, manifest)

    @classmethod
    def build(
        cls,
        pool: Pool,
        encoder: Encoder,
        *,
        kind: str = "auto",
        metric: Metric = "cosine",
        text: TextForm = "instruction",
        show_progress: bool = False,
    ) -> Index:
        """Encode a pool and index its vectors.

        Args:
            pool: the pool to index.
            encoder: encodes the texts.
            kind: ``auto`` (exact up to `ragalign.indexes.kinds.AUTO_FLAT_MAX` demonstrations, ``hnsw`` above),
                ``flat``, ``hnsw``, ``ivf``, or a FAISS factory string such as ``IVF256,PQ48``.
            metric: ``cosine``, ``ip`` (inner product) or ``l2``.
            text: the texts to encode: the ``instruction``, or ``both`` instruction and response.
            show_progress: show progress bars on stderr, if that is a terminal.

        Raises:
            ConfigError: an unknown kind, metric or text, or too few vectors to train the kind.
            DataError: a text cannot be encoded.
        """
        if metric not in get_args(Metric):
            raise ConfigError(f"metric must be one of {', '.join(get_args(Metric))}, not {metric!r}")
        if text not in get_args(TextForm):
            raise ConfigError(f"text must be one of {', '.join(get_args(TextForm))}, not {text!r}")
        FaissIndex.check(choose(kind, len(pool)).factory, encoder.dimension, inner_product=metric != "l2")
        vectors, n_truncated = encode_pool(pool, encoder, text, show_progress)
        record = EncoderRecord.of(encoder)
        return cls._assemble(
            pool, vectors, record, encoder, kind, metric, text, n_truncated=n_truncated, show_progress=show_progress
        )

    @classmethod
    def _assemble(
        cls,
        pool: Pool,
        vectors: NDArray[np.float32],
        record: EncoderRecord,
        encoder: Encoder | None,
        kind: str,
        metric: Metric,
        text: TextForm,
        *,
        n_truncated: int | None,
        origin: tuple[Path, str] | None = None,
        show_progress: bool = False,
    ) -> Index:
        chosen = choose(kind, len(pool))
        faiss = FaissIndex.build(
            for_metric(vectors, metric),
            chosen.factory,
            chosen.search,
            inner_product=metric != "l2",
            show_progress=show_progress,
        )
        manifest = Manifest(
            n_demonstrations=len(pool),
            pool_fingerprint=pool.fingerprint,
            text=text,
            metric=metric,
            kind=kind,
            factory=chosen.factory,
            search=chosen.search,
            encoder=record,
            made_with={"ragalign": version("ragalign"), "faiss": faiss_backend.version()},
            n_truncated=n_truncated,
        )
        return cls(pool, vectors, faiss, manifest, encoder, origin)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, replacing an existing index.

        If the process is killed, the folder has either the old index or the new one.

        Raises:
            ConfigError: the folder contains something other than an index.
            IndexMismatchError: this index was derived from the one in the folder, which has changed since.
            IndexFormatError: another process is writing the index, or it cannot be written.
        """
        path = store.as_folder(folder)
        expected = None
        if self._origin is not None and self._origin[0] == path.resolve():
            expected = self._origin[1]
        writers = {"pool": self.pool.save, "vectors": self._write_vectors, "faiss": self._faiss.write}
        blank = replace(self.manifest, files={}, checksum="")
        self.manifest = store.write_folder(path, blank, writers, expected)
        self._origin = (path.resolve(), self.manifest.checksum)

    def _write_vectors(self, path: Path) -> None:
        # np.save ignores errors when it closes its copy of the file, and so misses a full disk.
        vectors = np.ascontiguousarray(self.vectors, dtype="<f4")
        with path.open("wb") as file:
            header = np.lib.format.header_data_from_array_1_0(vectors)  # type: ignore[no-untyped-call]
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            file.write(vectors.data)

    @classmethod
    def open(cls, folder: str | Path, *, encoder: Encoder | None = None, verify: store.Verification = "full") -> Index:
        """Open an index. Vectors and the FAISS file are memory-mapped.

        Args:
            folder: a folder written by `save`.
            encoder: the encoder for queries; None loads the one named in the manifest on first use.
            verify: ``full`` checks the size and SHA-256 of every file; ``size`` skips the hashes, for indexes so large
                that reading them takes too long.

        Raises:
            IndexFormatError: the folder is not an index, is damaged, or has another format version.
            IndexMismatchError: the index was built with another encoder.
        """
        path = store.as_folder(folder)

        def load(manifest: Manifest, paths: Mapping[str, Path]) -> Index:
            if encoder is not None:
                require_same_encoder(path, manifest.encoder, encoder)
            return cls._load(path, manifest, paths, encoder)

        return store.read_folder(path, load, verify)

    @classmethod
    def _load(cls, folder: Path, manifest: Manifest, paths: Mapping[str, Path], encoder: Encoder | None) -> Index:
        try:
            vectors = read_vectors(paths["vectors"])
            pool = Pool.load(paths["pool"])
            faiss = FaissIndex.open(paths["faiss"], manifest.search)
        except (FileNotFoundError, IndexFormatError, MissingDependencyError):
            raise
        except Exception as error:  # readers of damaged files raise anything
            # Raises FileNotFoundError for a missing file, which the caller handles.
            for path in paths.values():
                path.stat()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise IndexFormatError(f"{folder} is damaged: {reason}; build the index again") from None
        shape = (manifest.n_demonstrations, manifest.encoder.dimension)
        if not shape == vectors.shape == faiss.shape or len(pool) != shape[0]:
            raise IndexFormatError(f"the files in {folder} do not belong together; build the index again")
        index = cls(pool, vectors, faiss, manifest, encoder, (folder.resolve(), manifest.checksum))
        if problem := checking.first_problem(vectors, faiss, manifest):
            raise IndexFormatError(f"{folder} is damaged: {problem}; build the index again")
        return index

    @classmethod
    def verify(cls, folder: str | Path) -> Manifest:
        """Check an index completely.

        This covers checksums, sizes, hashes, counts and the pool's fingerprint, and that every vector is valid and the
        FAISS file contains and finds it.

        Returns:
            The manifest.

        Raises:
            IndexFormatError: the first problem found.
        """
        index = cls.open(folder)
        if index.pool.fingerprint != index.manifest.pool_fingerprint:
            raise IndexFormatError(f"{folder} is damaged: the pool does not match the manifest; build the index again")
        if problem := checking.any_problem(index.vectors, index._faiss, index.manifest, index.pool.ids):
            raise IndexFormatError(f"{folder} is damaged: {problem}; build the index again")
        return index.manifest

    def __len__(self) -> int:
        return len(self.pool)

    def __repr__(self) -> str:
        about = self.manifest
        return f"Index({len(self)} demonstrations, {about.factory}, {about.metric}, encoder {about.encoder.id!r})"

    @property
    def folder(self) -> Path | None:
        """The absolute folder that the index was opened from or saved to; None if it is only in memory."""
        return None if self._origin is None else self._origin[0]

    @property
    def metric(self) -> Metric:
        """``cosine``, ``ip`` or ``l2``."""
        return self.manifest.metric

    @property
    def encoder(self) -> Encoder:
        """The encoder that made the vectors, loaded on first use if none was given.

        Raises:
            ConfigError: it cannot be loaded.
            IndexMismatchError: the loaded encoder differs from the one that made the vectors.
        """
        if self._encoder is None:
            self._encoder = load_recorded(self.manifest.encoder, self._origin[0] if self._origin else None)
        return self._encoder

    def search(self, vectors: NDArray[np.float32], k: int, *, allowed: NDArray[np.bool_] | None = None) -> Found:
        """Find the k demonstrations closest to each vector.

        Args:
            vectors: query vectors ``[m, d]`` from the encoder.
            k: results per query.
            allowed: bool ``[n]``, True for the positions to search; None searches all.

        Returns:
            Scores, float32 ``[m, k]``, higher is closer: cosine, inner product or negative squared distance;
            and pool positions, int64 ``[m, k]``. Best first, equal scores by position. If fewer than k are allowed,
            rows end with -inf and -1.

        Raises:
            ConfigError: k < 1, or a mask of another type or shape.
            IndexMismatchError: the vectors have another dimension.
            DataError: a vector contains NaN, infinity or values whose squares overflow.
        """
        return self._searcher.search(vectors, k, allowed)

    def add(self, pool: Pool, *, show_progress: bool = False) -> Index:
        """Return an index with the demonstrations of ``pool`` added at the end, as if built from both pools.

        Only new demonstrations are encoded. The FAISS index is rebuilt from all vectors.
        """
        joined = self.pool.union(pool)
        if len(joined) == len(self):
            return self
        new, n_new = encode_pool(joined[len(self) :], self.encoder, self.manifest.text, show_progress)
        n_before = self.manifest.n_truncated
        n_truncated = None if n_before is None else n_before + n_new
        return self._derive(joined, np.concatenate([self.vectors, new]), n_truncated, show_progress)

    def remove(self, ids: Iterable[str]) -> Index:
        """Return an index without these demonstrations.

        Raises:
            DataError: an id is not in the index.
        """
        gone = set(ids)
        left = self.pool.without(gone)
        if len(left) == len(self):
            return self
        keep = np.fromiter((each not in gone for each in self.pool.ids), dtype=bool, count=len(self))
        return self._derive(left, self.vectors[keep], self._n_truncated_of(left), show_progress=False)

    def _n_truncated_of(self, part: Pool) -> int | None:
        """Number of truncated texts in a part of the pool; None if the encoder cannot be loaded to count them."""
        if not self.manifest.n_truncated:
            return self.manifest.n_truncated
        try:
            return int(self.encoder.truncated(texts_of(part, self.manifest.text)).sum())
        except RagalignError:
            return None

    def _derive(self, pool: Pool, vectors: NDArray[np.float32], n_truncated: int | None, show_progress: bool) -> Index:
        about = self.manifest
        return self._assemble(
            pool,
            vectors,
            about.encoder,
            self._encoder,
            about.kind,
            about.metric,
            about.text,
            n_truncated=n_truncated,
            origin=self._origin,
            show_progress=show_progress,
        )
