"""The candidates whose gains are measured for a question: near, middling and random demonstrations."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Literal

import numpy as np

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.pool.wrappers import question_key
from ragalign.retrieval import Exclusion, make_retriever
from ragalign.types import Demonstration, Query

Kind = Literal["near", "middling", "random"]

# Middling candidates come from this many times the number of candidates, after the near ones.
_MIDDLE = 10


def choose_candidates(
    index: Index, queries: Sequence[Query], n: int, *, seed: int = 0, accepts: Callable[[Demonstration], bool]
) -> list[dict[str, Kind]]:
    """Choose candidates for each question: half of them the nearest, a quarter middling ones, the others at random.

    A question's own pair is never among them. The choice depends on the question, the index and the seed, not on the
    other questions.

    Args:
        index: the index with the candidates.
        queries: the questions.
        n: candidates per question, at least 1; fewer are chosen if the pool has no more.
        seed: random seed.
        accepts: whether a demonstration can be shown.

    Returns:
        for each question, the candidates' ids and kinds, the near ones first.

    Raises:
        ConfigError: `n` is less than 1.
    """
    if n < 1:
        raise ConfigError(f"candidates must be at least 1, not {n}")
    ids = index.pool.ids
    known: dict[str, bool] = {}

    def fits(id_: str) -> bool:
        if id_ not in known:
            known[id_] = accepts(index.pool.get(id_))
        return known[id_]

    asking: dict[str, list[str]] = {}
    for id_, text in zip(ids, index.pool.instructions, strict=True):
        asking.setdefault(question_key(text), []).append(id_)
    depth = min(len(index), max(_MIDDLE * n, 1) + n)
    hits = make_retriever("dense", index).retrieve(queries, depth, exclude=Exclusion())
    n_near, n_middle = -(-n // 2), n // 4
    found = []
    for query, near in zip(queries, hits, strict=True):
        draw = np.random.default_rng([seed, zlib.crc32(query.id.encode("utf-8", "replace"))])
        ranked = [hit.id for hit in near]
        chosen: dict[str, Kind] = dict.fromkeys(_first(ranked, n_near, fits, {}), "near")
        middle = (ranked[place] for place in draw.permutation(len(ranked)))
        chosen |= dict.fromkeys(_first(middle, n_middle, fits, chosen), "middling")
        own = {id_ for text in query.own_texts for id_ in asking.get(question_key(text), ())}
        others = (ids[place] for place in draw.permutation(len(ids)) if ids[place] not in own)
        chosen |= dict.fromkeys(_first(others, n - len(chosen), fits, chosen), "random")
        found.append(chosen)
    return found


def _first(ids: Iterable[str], n: int, fits: Callable[[str], bool], taken: Collection[str]) -> list[str]:
    found: list[str] = []
    for id_ in ids:
        if len(found) >= n:
            break
        if id_ not in taken and fits(id_):
            found.append(id_)
    return found
