"""Questions with a reference answer, from a pool's own pairs or from a question file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ragalign.pool import Pool
from ragalign.questions import ANSWER_FIELDS
from ragalign.types import Query, Turn


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question and a good answer to it.

    Attributes:
        query: the question; its id identifies it in files.
        reference: the answer whose likelihood is measured.
    """

    query: Query
    reference: str

    @property
    def id(self) -> str:
        """The query's."""
        return self.query.id


def pool_questions(pool: Pool, n: int | None = None, seed: int = 0) -> list[AnsweredQuestion]:
    """A pool's own pairs as questions, named after their demonstrations.

    Args:
        pool: the pool.
        n: draw so many; None takes all, in order.
        seed: random seed of the draw.
    """
    places = np.arange(len(pool))
    if n is not None and n < len(pool):
        places = np.random.default_rng(seed).permutation(len(pool))[:n]
    return [
        AnsweredQuestion(Query(one.id, (Turn("user", one.instruction),)), one.response) for one in pool.take(places)
    ]


def query_questions(queries: Iterable[Query]) -> tuple[list[AnsweredQuestion], int]:
    """The queries that have a reference answer, and the number of those that have none.

    The reference is the metadata field ``reference`` (of a list, the first), or else a field in which pools have their
    answers: ``output``, ``response``, ``completion`` or ``answer``.
    """
    found, n_without = [], 0
    for query in queries:
        reference = _reference(query)
        if reference:
            found.append(AnsweredQuestion(query, reference))
        else:
            n_without += 1
    return found, n_without


def _reference(query: Query) -> str:
    for name in ("reference", *ANSWER_FIELDS):
        value = query.metadata.get(name)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if isinstance(value, str) and value.strip():
            return value
    return ""
