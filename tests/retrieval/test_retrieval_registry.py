from __future__ import annotations

import inspect
from typing import Any

import pytest

import ragalign.retrieval as room
from ragalign.errors import ConfigError
from ragalign.retrieval import Retriever, make_retriever, retriever_names, retriever_options


def test_every_strategy_of_the_room_is_there() -> None:
    strategies = {
        value.name
        for value in vars(room).values()
        if isinstance(value, type) and issubclass(value, Retriever) and not inspect.isabstract(value)
    }
    assert set(retriever_names()) == strategies
    assert set(retriever_names()) == {"dense", "bm25", "hybrid", "mmr", "dpp", "rerank", "utility", "random", "fixed"}


def test_unknown_name_lists_the_names(make_index: Any) -> None:
    with pytest.raises(ConfigError, match=r"'sparse'.*dense, bm25, hybrid, mmr, dpp, rerank, utility, random, fixed"):
        make_retriever("sparse", make_index(["a"]))
    with pytest.raises(ConfigError, match="'sparse'"):
        retriever_options("sparse")


@pytest.mark.parametrize("name", retriever_names())
def test_unknown_option_lists_the_options(make_index: Any, name: str) -> None:
    listed = ", ".join(retriever_options(name)) or "none"
    with pytest.raises(ConfigError) as caught:
        make_retriever(name, make_index(["a"]), colour="blue", index=None)
    assert str(caught.value) == f"retriever {name!r} has no option 'colour', 'index'; its options: {listed}"


def test_options_are_listed_as_recipes_write_them() -> None:
    assert retriever_options("mmr") == ("lambda", "first", "n_candidates")
    assert retriever_options("dense") == ()


def test_stages_by_name_are_checked_too(make_index: Any) -> None:
    index = make_index(["a"])
    with pytest.raises(ConfigError, match="no retriever 'sparse'"):
        make_retriever("mmr", index, first="sparse")
    with pytest.raises(ConfigError, match="'bm25' has no option 'k'; its options: k1, b, stopwords"):
        make_retriever("mmr", index, first={"name": "bm25", "k": 1})
    with pytest.raises(ConfigError, match="a name or a mapping"):
        make_retriever("mmr", index, first={"k1": 1})
    with pytest.raises(ConfigError, match="a name or a mapping"):
        make_retriever("hybrid", index, retrievers=["dense", 3])
    with pytest.raises(ConfigError, match="retrievers must be a list"):
        make_retriever("hybrid", index, retrievers="dense")
    with pytest.raises(ConfigError, match="uses another pool"):
        make_retriever("rerank", index, first=make_retriever("dense", make_index(["b"])))


def test_stages_nest(make_index: Any) -> None:
    index = make_index([f"instruction {row}" for row in range(12)])
    nested = {"name": "mmr", "lambda": 0.5, "first": {"name": "hybrid", "retrievers": ["dense", "bm25"]}}
    assert len(make_retriever("dpp", index, first=nested).retrieve(["instruction 3"], 5)[0]) == 5
