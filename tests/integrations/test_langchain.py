"""LangChain: the example selector over a real index, and ChatOpenAI against the service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.integrations.langchain import example_selector
from ragalign.retrieval import make_retriever

pytest.importorskip("langchain_core", reason="needs the `dev` extra")

QUERY = "Why is the sky blue?"


@pytest.fixture(scope="module")
def index(starter_index: Path, minilm: Encoder) -> Index:
    return Index.open(starter_index, encoder=minilm)


def test_examples_are_the_retrievers_hits_nearest_last(index: Index) -> None:
    [hits] = make_retriever("dense", index).retrieve([QUERY], 4)
    found = example_selector(index, k=4).select_examples({"question": QUERY})
    assert [example["id"] for example in found] == [hit.id for hit in reversed(hits)]
    assert found[-1]["response"] == index.pool.get(hits[0].id).response
    assert asyncio.run(example_selector(index, k=4).aselect_examples({"question": QUERY})) == found
    first = example_selector(index, k=4, most_similar_last=False).select_examples({"question": QUERY})
    assert first == found[::-1]


def test_a_few_shot_prompt_is_made_of_them(index: Index) -> None:
    from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate

    prompt = FewShotPromptTemplate(
        example_selector=example_selector(index, k=2),
        example_prompt=PromptTemplate.from_template("Q: {instruction}\nA: {response}"),
        suffix="Q: {question}\nA:",
        input_variables=["question"],
    ).format(question=QUERY)
    assert prompt.count("Q: ") == 3
    assert prompt.endswith(f"Q: {QUERY}\nA:")


def test_what_is_wrong_is_said(index: Index) -> None:
    selector = example_selector(index)
    with pytest.raises(ConfigError, match="which of a, b is the query"):
        selector.select_examples({"a": "x", "b": "y"})
    with pytest.raises(ConfigError, match="no input variable 'question'"):
        example_selector(index, input_key="question").select_examples({"a": "x"})
    with pytest.raises(ConfigError, match="ragalign index add"):
        selector.add_example({"instruction": "x", "response": "y"})


def test_an_example_is_not_its_own_answer(index: Index) -> None:
    demonstration = index.pool[0]
    found = example_selector(index, k=5).select_examples({"q": demonstration.instruction})
    assert demonstration.id not in {example["id"] for example in found}
