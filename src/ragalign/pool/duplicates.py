"""Finds demonstrations whose instructions say the same: exactly, or nearly."""

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


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A demonstration that repeats an earlier one. `similarity` is 1.0 where the normalised texts are equal."""

    id: str
    duplicate_of: str
    similarity: float


def find_duplicates(ids: Sequence[str], instructions: pa.ChunkedArray, near: float | None) -> tuple[Duplicate, ...]:
    """Exact and near duplicates, in pool order; `Pool.duplicates` documents the arguments."""
    if near is not None and not 0 < near <= 1:
        raise ConfigError(f"near is {near}, but a similarity is above 0 and at most 1; 0.8 is a usual choice")
    first: dict[str, int] = {}
    found: list[tuple[int, int, float]] = []
    for position, instruction in enumerate(instructions):
        earlier = first.setdefault(normalise(instruction.as_py()), position)
        if earlier != position:
            found.append((position, earlier, 1.0))
    if near is not None:
        texts, positions = list(first), list(first.values())
        found.extend((positions[i], positions[j], score) for i, j, score in near_duplicates(texts, near))
        found.sort()
    return tuple(Duplicate(ids[position], ids[earlier], score) for position, earlier, score in found)


def near_duplicates(texts: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """Texts that are close to an earlier one, as (text, the text it repeats, similarity).

    Similarity is the Jaccard index of the sets of character 5-grams. Texts are taken in order; one repeats an
    earlier text that was itself kept and is at least ``threshold`` similar: the most similar, then the earliest.

    The search is exact: two sets can only reach the threshold if their prefixes, in an order that begins with the
    rarest 5-grams, have one in common (prefix filtering: Bayardo, Ma, Srikant, "Scaling up all pairs similarity
    search", 2007). Only such pairs are compared.
    """
    if not texts:
        return
    sets = lru_cache(maxsize=_CACHED_SETS)(lambda i: _grams(texts[i]))
    prefixes = _prefixes(len(texts), sets, threshold)
    ends = np.cumsum([prefix.size for prefix in prefixes])
    _, lists, capacities = np.unique(np.concatenate(prefixes), return_inverse=True, return_counts=True)
    # One inverted list per 5-gram, all in one array with room for every text; only kept texts are entered.
    starts = np.cumsum(capacities) - capacities
    filled = np.zeros(len(capacities), dtype=np.int64)
    entries = np.empty(len(lists), dtype=np.int64)
    for i, end in enumerate(ends):
        own = lists[end - prefixes[i].size : end]
        own = own[capacities[own] > 1]
        candidates = np.unique(entries[_ranges(starts[own], filled[own])])
        best, best_score = -1, 0.0
        for j in candidates.tolist():
            score = _jaccard(sets(i), sets(j), threshold)
            if score >= threshold and score > best_score:
                best, best_score = j, score
        if best >= 0:
            yield i, best, best_score
        else:
            entries[starts[own] + filled[own]] = i
            filled[own] += 1


def _prefixes(n_texts: int, sets: Callable[[int], NDArray[np.uint64]], threshold: float) -> list[NDArray[np.uint64]]:
    """Per text the 5-grams of which a similar text must share one."""
    # In how many texts a 5-gram is, or a little more where several fall into one bucket: any order is correct,
    # rare ones first is quick.
    counts = np.zeros(_BUCKETS, dtype=np.int64)
    for i in range(n_texts):
        counts[sets(i) % _BUCKETS] += 1
    prefixes = []
    for i in range(n_texts):
        grams = sets(i)
        frequency = counts[grams % _BUCKETS]
        length = grams.size - math.ceil(threshold * grams.size - 1e-9) + 1
        prefix = np.argsort(frequency, kind="stable")[:length]
        prefixes.append(grams[prefix[frequency[prefix] > 1]])
    return prefixes


def _grams(text: str) -> NDArray[np.uint64]:
    """The set of character 5-grams as sorted 64-bit hashes; a shorter text is one gram."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(max(codes.size - _GRAM + 1, 1), dtype=np.uint64)
    for offset in range(min(_GRAM, codes.size)):
        hashes = hashes * _FACTOR + codes[offset : offset + hashes.size] + np.uint64(1)
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes * _FACTOR)


def _jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64], threshold: float) -> float:
    """The Jaccard index of two sets, or 0 where their sizes alone keep it below ``threshold``."""
    smaller, larger = sorted((a.size, b.size))
    if smaller < threshold * larger - 1e-9:
        return 0.0
    common = np.intersect1d(a, b, assume_unique=True).size
    return common / (smaller + larger - common)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers ``start .. start + length - 1`` of every range, one after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())
