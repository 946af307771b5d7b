"""Finding demonstrations with the same or nearly the same instruction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.text import normalise

_GRAM = 5
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, made odd: spreads the characters over 64 bits
_BUCKETS = 2**22
_CACHED_SETS = 2**16
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A demonstration whose instruction repeats that of an earlier one, which is kept.

    `similarity` is 1.0 if the normalised instructions have the same set of 5-grams, which equal ones have.
    """

    id: str
    duplicate_of: str
    similarity: float


def find_duplicates(ids: Sequence[str], instructions: pa.ChunkedArray, near: float | None) -> tuple[Duplicate, ...]:
    """Exact and near duplicates, in pool order; `Pool.duplicates` documents the arguments."""
    if near is not None and not 0 < near <= 1:
        raise ConfigError(f"near must be above 0 and at most 1, not {near}; 0.8 is a usual choice")
    first: dict[str, int] = {}
    exact: list[tuple[int, int]] = []
    for position, instruction in enumerate(instructions):
        earlier = first.setdefault(normalise(instruction.as_py()), position)
        if earlier != position:
            exact.append((position, earlier))
    removed: dict[int, tuple[int, float]] = {}
    if near is not None:
        positions = list(first.values())
        for i, j, similarity in near_duplicates(list(first), near):
            removed[positions[i]] = positions[j], similarity
    # If the first of several equal texts is removed, all of them are duplicates of the same kept text.
    removed.update({position: removed.get(earlier, (earlier, 1.0)) for position, earlier in exact})
    return tuple(
        Duplicate(ids[position], ids[kept], similarity) for position, (kept, similarity) in sorted(removed.items())
    )


def near_duplicates(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Find texts that are similar to an earlier one; yields (text, earlier text, similarity), texts as positions.

    Similarity is the Jaccard index of the sets of character 5-grams. Texts are processed in order and compared with
    earlier texts that were kept. If several reach the threshold, the most similar is reported, and of these the first.

    The search is exact. Two sets can reach the threshold only if their prefixes, rarest 5-grams first, share a 5-gram
    (prefix filtering: Bayardo, Ma, Srikant, "Scaling up all pairs similarity search", 2007), so only such pairs are
    compared.
    """
    if not texts:
        return
    sets = lru_cache(maxsize=_CACHED_SETS)(lambda i: _grams(texts[i]))
    sizes = np.array([sets(i).size for i in range(len(texts))], dtype=np.int64)
    prefixes = _prefixes(sets, sizes, threshold)
    ends = np.cumsum([ranks.size for _, ranks in prefixes])
    _, lists, capacities = np.unique(
        np.concatenate([grams for grams, _ in prefixes]), return_inverse=True, return_counts=True
    )
    # One inverted list per 5-gram, all in one array with room for every text; only kept texts are added.
    starts = np.cumsum(capacities) - capacities
    filled = np.zeros(len(capacities), dtype=np.int64)
    entries = np.empty((2, len(lists)), dtype=np.int32)  # the text, and the rank of the 5-gram in it
    for i, end in enumerate(ends):
        ranks = prefixes[i][1]
        own = lists[end - ranks.size : end]
        shared = capacities[own] > 1
        own, ranks = own[shared], ranks[shared]
        places = _ranges(starts[own], filled[own])
        candidates = _candidates(i, sizes, entries[:, places], np.repeat(ranks, filled[own]), threshold)
        best, best_score = -1, 0.0
        for j in candidates.tolist():
            common = np.intersect1d(sets(i), sets(j), assume_unique=True).size
            score = common / (sizes[i] + sizes[j] - common)
            if score >= threshold and score > best_score:
                best, best_score = j, float(score)
        if best >= 0:
            yield i, best, best_score
        else:
            free = starts[own] + filled[own]
            entries[0, free] = i
            entries[1, free] = ranks
            filled[own] += 1


def _prefixes(
    sets: Callable[[int], NDArray[np.uint64]], sizes: NDArray[np.int64], threshold: float
) -> list[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """For each text, rarest first, the 5-grams of which any similar text shares at least one, and their ranks."""
    # Document frequencies of 5-grams, slightly too high where several share a bucket. Any order is correct; rare
    # ones first is fast.
    counts = np.zeros(_BUCKETS, dtype=np.int64)
    for i in range(len(sizes)):
        counts[sets(i) % _BUCKETS] += 1
    prefixes = []
    for i, size in enumerate(sizes.tolist()):
        grams = sets(i)
        frequency = counts[grams % _BUCKETS]
        order = np.argsort(frequency, kind="stable")[: size - math.ceil(threshold * size - _ROUNDING) + 1]
        ranks = np.flatnonzero(frequency[order] > 1)
        prefixes.append((grams[order[ranks]], ranks))
    return prefixes


def _candidates(
    i: int, sizes: NDArray[np.int64], entries: NDArray[np.int32], ranks: NDArray[np.int64], threshold: float
) -> NDArray[np.int32]:
    """Filter the texts found for text ``i`` by size and by the largest overlap that is still possible.

    After the last shared 5-gram, the overlap grows by at most the smaller remainder (positional filtering: Xiao,
    Wang, Lin, Yu, "Efficient similarity joins for near duplicate detection", 2008).
    """
    texts, which, counts = np.unique(entries[0], return_inverse=True, return_counts=True)
    last = np.zeros((2, len(texts)), dtype=np.int64)
    np.maximum.at(last[0], which, ranks)
    np.maximum.at(last[1], which, entries[1])
    possible = counts + np.minimum(sizes[i] - 1 - last[0], sizes[texts] - 1 - last[1])
    possible = np.minimum(possible, np.minimum(sizes[i], sizes[texts]))
    needed = threshold / (1 + threshold) * (sizes[i] + sizes[texts])
    chosen: NDArray[np.int32] = texts[possible >= needed - _ROUNDING]
    return chosen


def _grams(text: str) -> NDArray[np.uint64]:
    """The set of character 5-grams as sorted 64-bit hashes; a shorter text is one gram."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(max(codes.size - _GRAM + 1, 1), dtype=np.uint64)
    for offset in range(min(_GRAM, codes.size)):
        hashes = hashes * _FACTOR + codes[offset : offset + hashes.size] + np.uint64(1)
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes * _FACTOR)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The concatenated ranges ``start .. start + length - 1``."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
