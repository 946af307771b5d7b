from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ragalign.retrieval.ranking import Ranking, top
from ragalign.types import Hit


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 45), st.lists(st.booleans(), min_size=40, max_size=40))
def test_top_orders_by_score_then_position(values: list[int], k: int, flags: list[bool]) -> None:
    scores = np.array(values, dtype=np.float32)
    allowed = np.array(flags[: len(values)], dtype=np.bool_)
    expected = sorted((i for i in range(len(values)) if allowed[i]), key=lambda i: (-values[i], i))[:k]
    assert top(scores, k, allowed).tolist() == expected
    assert top(scores, k).tolist() == sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def test_hits_end_where_the_positions_end() -> None:
    ids = np.array(["a", "b", "c"], dtype=object)
    ranking = Ranking(np.array([[0.9, 0.5], [0.7, -np.inf]]), np.array([[2, 0], [1, -1]]))
    assert ranking.hits(ids) == [[Hit("c", 0.9, 1), Hit("a", 0.5, 2)], [Hit("b", 0.7, 1)]]
