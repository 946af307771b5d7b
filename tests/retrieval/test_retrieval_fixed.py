from __future__ import annotations

from typing import Any

import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.pool import Pool
from ragalign.retrieval import Exclusion, FixedRetriever, make_retriever
from ragalign.types import Demonstration, Hit

CONSTANTS = [Demonstration("Greet me", "Hello!"), Demonstration("Say no", "No."), Demonstration("Count", "1, 2, 3")]


def test_ids_in_the_given_order(make_index: Any) -> None:
    index = make_index(["a", "b", "c", "d"])
    ids = [index.pool.ids[row] for row in (2, 0, 3)]
    retriever = make_retriever("fixed", index, ids=ids)
    assert retriever.pool is index.pool
    expected = [Hit(name, 0.0, rank) for rank, name in enumerate(ids, 1)]
    assert retriever.retrieve(["x", "y"], 3) == [expected, expected]
    assert retriever.retrieve(["x"], 2) == [expected[:2]]
    assert retriever.retrieve(["x"], 9) == [expected]


def test_demonstrations_that_are_in_no_index(make_index: Any) -> None:
    mappings = [{"instruction": demo.instruction, "response": demo.response} for demo in CONSTANTS]
    for given in (CONSTANTS, Pool.from_demonstrations(CONSTANTS), mappings):
        retriever = make_retriever("fixed", make_index(["a"]), demonstrations=given)
        [hits] = retriever.retrieve(["x"], 3)
        assert [retriever.pool.get(hit.id) for hit in hits] == CONSTANTS


def test_without_an_index() -> None:
    [hits] = FixedRetriever(demonstrations=CONSTANTS).retrieve([" say NO "], 3, exclude=Exclusion())
    assert [hit.id for hit in hits] == [CONSTANTS[0].id, CONSTANTS[2].id]
    assert [hit.rank for hit in hits] == [1, 2]


def test_near_is_measured_by_the_index_s_encoder(make_index: Any) -> None:
    vectors = {"Greet me": [1, 0], "Say no": [0, 1], "Count": [1, 1], "q": [1, 0.1]}
    index = make_index(["a"], dimension=2, vectors=vectors)
    retriever = FixedRetriever(index, demonstrations=CONSTANTS)
    [hits] = retriever.retrieve(["q"], 3, exclude=Exclusion(near=0.9))
    assert [hit.id for hit in hits] == [CONSTANTS[1].id, CONSTANTS[2].id]


def test_filters_hold(make_index: Any) -> None:
    index = make_index(["a", "b", "c"], sources=["s", "t", "s"])
    [hits] = make_retriever("fixed", index, ids=index.pool.ids[::-1]).retrieve(["x"], 3, where={"source": "s"})
    assert [hit.id for hit in hits] == [index.pool.ids[2], index.pool.ids[0]]


def test_arguments_are_checked(make_index: Any) -> None:
    index = make_index(["a", "b"])
    with pytest.raises(ConfigError, match="either ids or demonstrations"):
        make_retriever("fixed", index)
    with pytest.raises(ConfigError, match="either ids or demonstrations"):
        make_retriever("fixed", index, ids=index.pool.ids, demonstrations=CONSTANTS)
    with pytest.raises(ConfigError, match="ids must be a list"):
        make_retriever("fixed", index, ids=index.pool.ids[0])
    with pytest.raises(ConfigError, match="in an index"):
        FixedRetriever(ids=["a"])
    with pytest.raises(DataError, match="no demonstration with the id 'nobody'"):
        make_retriever("fixed", index, ids=["nobody"])
    with pytest.raises(ConfigError, match="an instruction and a response"):
        make_retriever("fixed", index, demonstrations=[{"instruction": "a"}])
    with pytest.raises(ConfigError, match="an instruction and a response"):
        make_retriever("fixed", index, demonstrations=["a"])
    with pytest.raises(ConfigError, match="not: output"):
        make_retriever("fixed", index, demonstrations=[{"instruction": "a", "response": "b", "output": "c"}])
