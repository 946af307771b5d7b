"""The index: a pool, its vectors, and a FAISS index of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder
from ragalign.errors import (
    ConfigError,
    DataError,
    IndexFormatError,
    IndexMismatchError,
    MissingDependencyError,
    RagalignError,
)
from ragalign.indexes import checking, faiss_backend, store
from ragalign.indexes.faiss_backend import FaissIndex, Found
from ragalign.indexes.kinds import choose
from ragalign.indexes.manifest import EncoderRecord, Manifest, Metric, TextForm
from ragalign.indexes.vectors import for_metric, measurable, read_vectors
from ragalign.pool import Pool
from ragalign.runs.machine import version

_log = logging.getLogger(__name__)

_BLOCK = 32_768


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
        vectors, n_truncated = _encode(pool, encoder, text, show_progress)
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
                _require_same_encoder(path, manifest.encoder, encoder)
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
            raise IndexFormatError(f"the pool in {folder} does not match the manifest")
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
            record = self.manifest.encoder
            try:
                encoder = Encoder.load(
                    record.id,
                    revision=record.revision,
                    normalize=record.normalize,
                    query_prompt=record.query_prompt,
                    document_prompt=record.document_prompt,
                    precision=record.precision,
                )
            except RagalignError as error:
                raise ConfigError(
                    f"the index's encoder cannot be loaded; open the index with encoder=...: {error}"
                ) from error
            _require_same_encoder(self._origin[0] if self._origin else None, record, encoder)
            self._encoder = encoder
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
        queries = self._check_queries(vectors)
        if k < 1:
            raise ConfigError(f"k must be at least 1, not {k}")
        mask = self._check_mask(allowed)
        queries = for_metric(queries, self.metric)
        available = len(self) if mask is None else int(np.count_nonzero(mask))
        n_results = min(k, available)
        if n_results == 0 or len(queries) == 0:
            return _padded((np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)), k)
        if mask is None:
            found: Found | None = self._faiss.search(queries, n_results)
        else:
            found = self._faiss.search_allowed(queries, n_results, mask)
        if found is None:
            found = self._search_exactly(queries, n_results, mask)
        else:
            # An approximate kind can find fewer than k; search these queries exactly.
            short = (found[1] < 0).any(axis=1)
            if short.any():
                found[0][short], found[1][short] = self._search_exactly(queries[short], n_results, mask)
        return _padded(_ordered(*found), k)

    def _search_exactly(self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None) -> Found:
        """Search the allowed rows exactly, block by block."""
        rows = np.arange(len(self)) if mask is None else np.flatnonzero(mask)
        scores = np.full((len(queries), 0), -np.inf, dtype=np.float32)
        positions = np.full((len(queries), 0), -1, dtype=np.int64)
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            some = faiss_backend.search_rows(
                queries,
                for_metric(self.vectors[block], self.metric),
                k,
                inner_product=self.metric != "l2",
            )
            scores = np.concatenate([scores, some[0]], axis=1)
            positions = np.concatenate([positions, block[some[1]]], axis=1)
            best = np.lexsort((positions, -scores), axis=1)[:, :k]
            scores = np.take_along_axis(scores, best, axis=1)
            positions = np.take_along_axis(positions, best, axis=1)
        return scores, positions

    def _check_queries(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        queries = np.ascontiguousarray(vectors, dtype=np.float32)
        dimension = self.manifest.encoder.dimension
        if queries.ndim != 2 or queries.shape[1] != dimension:
            raise IndexMismatchError(
                f"queries have the shape {list(np.shape(vectors))}, this index needs [m, {dimension}]; "
                f"encode them with {self.manifest.encoder.id!r}"
            )
        if not measurable(queries).all():
            raise DataError("a query vector contains NaN, infinity or huge values; check its text and the encoder")
        return queries

    def _check_mask(self, allowed: NDArray[np.bool_] | None) -> NDArray[np.bool_] | None:
        if allowed is None:
            return None
        mask = np.asarray(allowed)
        if mask.dtype != np.bool_ or mask.shape != (len(self),):
            raise ConfigError(
                f"allowed must be a boolean array of shape [{len(self)}], not {mask.dtype} of {list(mask.shape)}"
            )
        return None if mask.all() else mask

    def add(self, pool: Pool, *, show_progress: bool = False) -> Index:
        """Return an index with the demonstrations of ``pool`` added at the end, as if built from both pools.

        Only new demonstrations are encoded. The FAISS index is rebuilt from all vectors.
        """
        joined = self.pool.union(pool)
        if len(joined) == len(self):
            return self
        new, n_new = _encode(joined[len(self) :], self.encoder, self.manifest.text, show_progress)
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
            return int(self.encoder.truncated(_texts(part, self.manifest.text)).sum())
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


def _texts(pool: Pool, text: TextForm) -> list[str]:
    """The text to encode of each demonstration."""
    if text == "instruction":
        return pool.instructions
    return [f"{first}\n\n{second}" for first, second in zip(pool.instructions, pool.responses, strict=True)]


def _encode(pool: Pool, encoder: Encoder, text: TextForm, show_progress: bool) -> tuple[NDArray[np.float32], int]:
    """The vectors ``[n, d]`` and the number of truncated texts."""
    texts = _texts(pool, text)
    vectors = encoder.encode(texts, kind="document", show_progress=show_progress)
    if vectors.shape != (len(pool), encoder.dimension):
        raise IndexMismatchError(
            f"the encoder {encoder.id!r} made vectors of shape {list(vectors.shape)} "
            f"instead of {[len(pool), encoder.dimension]}"
        )
    is_measurable = measurable(vectors)
    if not is_measurable.all():
        bad = pool.ids[int(np.argmin(is_measurable))]
        raise DataError(
            f"the encoder {encoder.id!r} returns NaN, infinity or huge values for the demonstration {bad}; remove it"
        )
    n_truncated = int(encoder.truncated(texts).sum())
    if n_truncated:
        _log.warning(
            "%d of %d texts are longer than the %s tokens of the encoder %s: their ends are not searched",
            n_truncated,
            len(texts),
            encoder.max_tokens,
            encoder.id,
        )
    return np.ascontiguousarray(vectors, dtype=np.float32), n_truncated


def _ordered(scores: NDArray[np.float32], positions: NDArray[np.int64]) -> Found:
    """Order equal scores by position, which FAISS does not guarantee."""
    tied = (scores[:, 1:] == scores[:, :-1]).any(axis=1)
    if tied.any():
        order = np.lexsort((positions[tied], -scores[tied]), axis=1)
        scores[tied] = np.take_along_axis(scores[tied], order, axis=1)
        positions[tied] = np.take_along_axis(positions[tied], order, axis=1)
    return scores, positions


def _padded(found: Found, k: int) -> Found:
    missing = k - found[0].shape[1]
    if missing == 0:
        return found
    return (
        np.pad(found[0], ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(found[1], ((0, 0), (0, missing)), constant_values=-1),
    )


def _require_same_encoder(folder: Path | None, record: EncoderRecord, encoder: Encoder) -> None:
    if record.fingerprint == encoder.fingerprint:
        return
    where = "the index" if folder is None else f"the index {folder}"
    given = EncoderRecord.of(encoder)
    raise IndexMismatchError(
        f"{where} was built with the encoder {_describe(record)}, not with {_describe(given)}; "
        "use the former, or build the index again"
    )


def _describe(record: EncoderRecord) -> str:
    details = [f"revision {record.revision[:12]}", "normalised" if record.normalize else "not normalised"]
    if record.query_prompt or record.document_prompt:
        details.append(f"prompts {record.query_prompt!r} and {record.document_prompt!r}")
    if record.precision != "float32":
        details.append(record.precision)
    return f"{record.id!r} ({', '.join(details)})"
