"""FAISS: build, write, read and search. The only module that imports it.

Vectors and queries must be prepared for the metric: scaled to length 1 for the cosine. Higher scores are closer: the
inner product, or the negative squared distance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign._optional import require
from ragalign._progress import progress
from ragalign.errors import ConfigError, IndexFormatError

Found = tuple[NDArray[np.float32], NDArray[np.int64]]

_HNSW_EF_CONSTRUCTION = 200
_ADD_BLOCK = 65_536
# From this many queries, copying the allowed rows and using matrix products is faster than FAISS's masked scan.
_GATHER_MIN_QUERIES = 64
_GATHER_BLOCK = 32_768
# Smaller indexes are searched on the CPU in milliseconds, and the GPU memory is left to the language model.
_GPU_MIN_VECTORS = 50_000
_GPU_MAX_K = 2048
_GPU_TEMPORARY_BYTES = 64 << 20


class FaissIndex:
    """A FAISS index of n vectors with its search parameters."""

    def __init__(self, index: Any, search: Mapping[str, int]) -> None:
        self._faiss = _import_faiss()
        self._index = index
        self._search = dict(search)
        for name, value in self._search.items():
            self._faiss.ParameterSpace().set_index_parameter(index, name, value)

    @classmethod
    def build(
        cls,
        vectors: NDArray[np.float32],
        factory: str,
        search: Mapping[str, int],
        *,
        inner_product: bool,
        show_progress: bool = False,
    ) -> FaissIndex:
        """Train on and add ``vectors`` ``[n, d]``.

        Raises:
            ConfigError: FAISS does not know the factory string, does not support it for inner products, or cannot
                train it on so few vectors.
        """
        faiss = _import_faiss()
        n, dimension = vectors.shape
        metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
        index = cls._new(faiss, factory, dimension, metric)
        try:
            kept_alive = prepare_training(faiss, index)
            if not index.is_trained:
                index.train(vectors)
            del kept_alive
            with progress("indexing", n, "vectors") if show_progress else _silent() as advance:
                for start in range(0, n, _ADD_BLOCK):
                    block = vectors[start : start + _ADD_BLOCK]
                    index.add(block)
                    advance(len(block))
            return cls(index, search)
        except RuntimeError as error:
            raise ConfigError(
                f"FAISS cannot build {factory!r} from {n} x {dimension} vectors: {faiss_reason(error)}; "
                "choose another kind (auto, flat, hnsw, ivf or a factory string)"
            ) from None

    @classmethod
    def check(cls, factory: str, dimension: int, *, inner_product: bool) -> None:
        """Check a factory string before anything slow starts.

        Raises:
            ConfigError: FAISS does not know it, or does not support it for inner products.
        """
        faiss = _import_faiss()
        cls._new(faiss, factory, dimension, faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2)

    @staticmethod
    def _new(faiss: Any, factory: str, dimension: int, metric: Any) -> Any:
        try:
            index = faiss.index_factory(dimension, factory, metric)
        except RuntimeError as error:
            raise ConfigError(
                f"FAISS cannot build {factory!r} for {dimension} dimensions: {faiss_reason(error)}; "
                "choose another kind (auto, flat, hnsw, ivf or a factory string)"
            ) from None
        if index.metric_type != metric:  # it drops the metric silently
            raise ConfigError(f"FAISS supports {factory!r} for the metric l2 only; use that metric or another kind")
        return index

    @classmethod
    def open(cls, path: Path, search: Mapping[str, int]) -> FaissIndex:
        """Read a FAISS file, memory-mapped if this FAISS version and kind of index support it.

        Raises:
            IndexFormatError: FAISS cannot read it.
        """
        faiss = _import_faiss()
        try:
            index = faiss.read_index(str(path), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
            if any(isinstance(part, faiss.IndexIDMap) for part in _parts(faiss, index)):
                raise IndexFormatError(f"{path} has custom vector ids; build the index again")
            stored = {name: value for name in search if (value := _stored(faiss, index, name)) is not None}
            for name, value in stored.items():
                if value != search[name]:
                    raise IndexFormatError(
                        f"{path} was written with {name} {value}, not {search[name]}; build the index again"
                    )
            return cls(index, search)
        except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
            raise IndexFormatError(f"FAISS cannot read {path}: {faiss_reason(error)}; build the index again") from None

    def write(self, path: Path) -> None:
        """Write the FAISS file.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        # With a path, FAISS ignores errors when it closes the file: on a full disk it would be truncated silently.
        with path.open("wb") as file:
            self._faiss.write_index(self._index, self._faiss.PyCallbackIOWriter(file.write))

    @property
    def shape(self) -> tuple[int, int]:
        """The number of vectors and their dimension."""
        return int(self._index.ntotal), int(self._index.d)

    @property
    def inner_product(self) -> bool:
        """Whether vectors are compared by inner product, or else by squared distance."""
        return bool(self._index.metric_type == self._faiss.METRIC_INNER_PRODUCT)

    def search(self, queries: NDArray[np.float32], k: int) -> Found:
        """Search all vectors: the k best scores and positions ``[m, k]``, padded with -inf and -1."""
        if k <= _GPU_MAX_K and self._on_gpu is not None:
            return self._found(*self._on_gpu.search(queries, k))
        return self._found(*self._index.search(queries, k))

    def search_allowed(self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]) -> Found | None:
        """Search the allowed vectors; None if this kind of index is not accurate with masks.

        The more vectors the mask excludes, the more an approximate kind examines.
        """
        faiss, index = self._faiss, self._index
        n_allowed = int(np.count_nonzero(allowed))
        bits = np.packbits(allowed, bitorder="little")
        selector = faiss.IDSelectorBitmap(bits)
        widen = len(allowed) / max(1, n_allowed)
        if isinstance(index, faiss.IndexFlat):
            if len(queries) >= _GATHER_MIN_QUERIES:
                return None
            parameters = faiss.SearchParameters(sel=selector)
        elif n_allowed <= _GATHER_BLOCK:
            return None
        elif isinstance(index, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=int(index.hnsw.efSearch * widen))
        elif isinstance(index, faiss.IndexIVF):
            n_probes = min(index.nlist, int(np.ceil(index.nprobe * widen)))
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=n_probes)
        else:
            return None
        # `bits` and `selector` stay alive in this frame: the parameters only point to them.
        return self._found(*index.search(queries, k, params=parameters))

    def disagreement(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> str | None:
        """Describe how the FAISS index differs from the vectors that it was built from; None if it does not.

        Lossless kinds must return the vectors; other kinds, their own approximation of the vectors.

        Args:
            vectors: ``[m, d]``, prepared for the metric.
            rows: their positions ``[m]``, ascending.
        """
        try:
            stored = self._reconstructed(rows)
            expected = vectors
            if not self._is_lossless:
                expected = self._index.sa_decode(self._index.sa_encode(np.ascontiguousarray(vectors)))
        except RuntimeError as error:
            if "not implemented" in str(error) or "not supported" in str(error):
                return None  # a kind that cannot reconstruct vectors
            return f"its vectors cannot be reconstructed ({faiss_reason(error)})"
        wrong = ~np.isclose(stored, expected, rtol=1e-4, atol=1e-5).all(axis=1)
        if wrong.any():
            first = int(rows[int(np.argmax(wrong))])
            return f"{int(wrong.sum()):,} of its vectors differ, such as number {first:,}"
        return None

    def finds(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> float:
        """The share of ``vectors`` ``[m, d]`` that a search finds at their positions `rows`, or with an equal score."""
        scores, positions = self.search(vectors, min(10, self.shape[0]))
        own = (positions == rows[:, None]).any(axis=1)
        exact = np.einsum("ij,ij->i", vectors, vectors) if self.inner_product else np.zeros(len(vectors))
        return float((own | (scores[:, 0] >= exact - 1e-4 * np.abs(exact))).mean())

    @property
    def gives_rows(self) -> bool:
        """Whether single vectors can be reconstructed without reading all."""
        inner: Any = self._faiss.downcast_index(self._index)
        return isinstance(inner, self._faiss.IndexFlat) or (
            isinstance(inner, self._faiss.IndexHNSW) and self._is_lossless
        )

    @property
    def _is_lossless(self) -> bool:
        faiss, inner = self._faiss, self._faiss.downcast_index(self._index)
        if isinstance(inner, faiss.IndexHNSW):
            inner = faiss.downcast_index(inner.storage)
        return isinstance(inner, faiss.IndexFlat | faiss.IndexIVFFlat | faiss.IndexRefineFlat)

    def _reconstructed(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.full((len(rows), self.shape[1]), np.nan, dtype=np.float32)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            # Read the inverted lists once; vectors with other ids stay NaN.
            self._index.reconstruct_n(int(rows[0]), len(rows), found)
            return found
        for place, row in enumerate(rows.tolist()):
            found[place] = self._index.reconstruct(row)
        return found

    def _found(self, distances: NDArray[np.float32], positions: NDArray[np.int64]) -> Found:
        if positions.size and int(positions.max()) >= self.shape[0]:
            raise IndexFormatError("the FAISS file of the index has wrong vector ids; build the index again")
        scores = distances if self.inner_product else -distances
        scores[positions < 0] = -np.inf
        return scores, positions

    @cached_property
    def _on_gpu(self) -> Any | None:
        """A copy on the GPU, if FAISS has GPU support, the index is large and its kind is supported there."""
        faiss = self._faiss
        if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1 or self.shape[0] < _GPU_MIN_VECTORS:
            return None
        try:
            resources = faiss.StandardGpuResources()
            resources.setTempMemory(_GPU_TEMPORARY_BYTES)
            return faiss.index_cpu_to_gpu(resources, 0, self._index)
        except RuntimeError:  # the kind is not supported on GPUs, or the GPU is out of memory
            return None


def search_rows(queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, *, inner_product: bool) -> Found:
    """Exact search over ``vectors`` ``[r, d]`` with matrix products: scores and positions ``[m, min(k, r)]``."""
    faiss = _import_faiss()
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    distances, positions = faiss.knn(queries, vectors, min(k, len(vectors)), metric=metric)
    return (distances if inner_product else -distances), positions


def version() -> str:
    """The version of FAISS."""
    return str(_import_faiss().__version__)


def _parts(faiss: Any, index: Any) -> Iterator[Any]:
    """An index and all indexes within it."""
    part = faiss.downcast_index(index)
    yield part
    for name in ("index", "base_index", "refine_index", "quantizer", "storage"):
        if isinstance(within := getattr(part, name, None), faiss.Index):
            yield from _parts(faiss, within)


def _import_faiss() -> Any:
    return require("faiss", "an index")


def prepare_training(faiss: Any, index: Any) -> list[Any]:
    """Set options that factory strings do not cover; keep the returned objects alive until training is over."""
    inner, rotations = faiss.downcast_index(index), []
    while isinstance(inner, faiss.IndexPreTransform | faiss.IndexRefine):
        if isinstance(inner, faiss.IndexRefine):
            inner = faiss.downcast_index(inner.base_index)
            continue
        chain = [faiss.downcast_VectorTransform(inner.chain.at(i)) for i in range(inner.chain.size())]
        rotations += [each for each in chain if isinstance(each, faiss.OPQMatrix)]
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexHNSW):
        inner.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
    # Without a given quantiser, OPQ trains its own with 8 bits.
    quantisers = [faiss.ProductQuantizer(each.d_out, each.M, 8) for each in rotations]
    for rotation, quantiser in zip(rotations, quantisers, strict=True):
        rotation.pq = quantiser
    storage: Any = faiss.downcast_index(inner.storage) if isinstance(inner, faiss.IndexHNSW) else None
    parts: list[Any] = [inner, getattr(inner, "pq", None), getattr(storage, "pq", None), *quantisers]
    for part in parts:
        # FAISS warns on stderr below its recommended number of training vectors. Too few are an error anyway.
        if hasattr(part, "cp"):
            part.cp.min_points_per_centroid = 1
    for part in (inner, storage):
        # Sorts the codes for a search mode that we do not use; it takes more than a second per subquantiser.
        if hasattr(part, "do_polysemous_training"):
            part.do_polysemous_training = False
    return quantisers


def _stored(faiss: Any, index: Any, name: str) -> int | None:
    """The value of a search parameter in the file, or None."""
    if name == "nprobe":
        lists = faiss.try_extract_index_ivf(index)
        return None if lists is None else int(lists.nprobe)
    inner = faiss.downcast_index(index)
    return int(inner.hnsw.efSearch) if name == "efSearch" and isinstance(inner, faiss.IndexHNSW) else None


def faiss_reason(error: BaseException) -> str:
    """The message of a FAISS error, without its source location."""
    text = " ".join(str(error).split())
    # "Error in FUNCTION at FILE:LINE: Error: 'CONDITION' failed: MESSAGE", with or without a message
    _, failed, message = text.partition("' failed: ")
    return message if failed and message else text.rsplit(": ", 1)[-1]


@contextmanager
def _silent() -> Iterator[Callable[[int], None]]:
    yield lambda _done: None
