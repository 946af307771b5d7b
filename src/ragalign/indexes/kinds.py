"""Choosing a FAISS factory string and search parameters for an index kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, sqrt

from ragalign.errors import ConfigError

# Up to this size exact search takes one or two milliseconds per batched query on two cores (benchmarks/search.py).
AUTO_FLAT_MAX = 200_000

# Measured with MiniLM vectors of 111,000 sentences and instructions and 300 queries: recall@10 is 0.998.
_EF_SEARCH = 128
# Same data: recall@10 is 0.96 with 1,024 lists; up to 64 lists all are probed, which is exact.
_PROBES_MIN, _PROBES_SHARE = 64, 1 / 16

# FAISS recommends at least this many training vectors per centroid.
_VECTORS_PER_LIST = 39

# Lists on disk of up to this many vectors take half a gigabyte with MiniLM's 384 dimensions.
_BYTES_MAX = 1_000_000
_GRAPH_LISTS = 4096


@dataclass(frozen=True, slots=True)
class Kind:
    """A FAISS factory string and the parameters to search it with."""

    factory: str
    search: Mapping[str, int]


def choose(kind: str, n: int) -> Kind:
    """Choose the factory string for ``n`` vectors.

    ``auto`` is exact up to `AUTO_FLAT_MAX` vectors and ``hnsw`` above, which is faster and more accurate than ``ivf``.
    ``ivf`` needs less memory; it has about 4 sqrt(n) lists, a power of two as in FAISS's guidelines, and probes a
    sixteenth of them, at least 64.

    Raises:
        ConfigError: the kind is empty, or IVF with zero lists.
    """
    if kind == "auto":
        kind = "flat" if n <= AUTO_FLAT_MAX else "hnsw"
    if kind == "flat" or n == 0:
        return Kind("Flat", {})
    if kind == "hnsw":
        return Kind("HNSW32,Flat", {"efSearch": _EF_SEARCH})
    if kind == "ivf":
        lists = _n_lists(n)
        return Kind(f"IVF{lists},Flat", {"nprobe": _n_probes(lists)})
    if not kind.strip():
        raise ConfigError("the index kind must be auto, flat, hnsw, ivf or a FAISS factory string")
    if match := re.search(r"IVF(\d+)(_HNSW\d*)?\b", kind):
        if int(match[1]) == 0:
            raise ConfigError(f"the kind {kind!r} has no lists; IVF needs at least one")
        return Kind(kind, {"nprobe": _n_probes(int(match[1]))})
    if "HNSW" in kind:
        return Kind(kind, {"efSearch": _EF_SEARCH})
    return Kind(kind, {})


def choose_on_disk(n: int, dimension: int) -> str:
    """Choose the factory string for an index on disk: inverted lists as for ``ivf``, of compressed vectors.

    Up to `_BYTES_MAX` vectors each is compressed to one byte per dimension, above that to a byte for eight dimensions.
    Many lists are found through a graph.
    """
    lists = _n_lists(n)
    codes = "SQ8"
    if n > _BYTES_MAX:
        codes = f"PQ{max(m for m in range(1, max(dimension // 8, 1) + 1) if dimension % m == 0)}"
    return f"IVF{lists}{'_HNSW32' if lists >= _GRAPH_LISTS else ''},{codes}"


def _n_lists(n: int) -> int:
    most = max(1, n // _VECTORS_PER_LIST)
    wanted = 4 * sqrt(n)
    return 1 << (max(1, min(most, int(wanted))).bit_length() - 1)


def _n_probes(lists: int) -> int:
    return min(lists, max(_PROBES_MIN, ceil(lists * _PROBES_SHARE)))
