"""LangChain over a ragalign index, and over the service; it needs packages of its own, so it may be absent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.live import LiveApp
from fixtures.scripted_server import ScriptedServer

from ragalign._optional import is_installed
from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError, DataError, MissingDependencyError
from ragalign.indexes import Index
from ragalign.integrations.langchain import example_selector
from ragalign.retrieval import Exclusion, make_retriever
from ragalign.tokenization import Tokenizer

QUERY = "Why is the sky blue?"
needs_core = pytest.mark.skipif(not is_installed("langchain_core"), reason="needs langchain-core")


@pytest.fixture(scope="module")
def index(starter_index: Path, minilm: Encoder) -> Index:
    return Index.open(starter_index, encoder=minilm)


@pytest.mark.skipif(is_installed("langchain_core"), reason="langchain-core is installed")
def test_without_langchain_one_line_says_what_to_install(index: Index) -> None:
    with pytest.raises(MissingDependencyError, match=r"ragalign\[langchain\]"):
        example_selector(index)


@needs_core
@pytest.mark.parametrize("strategy", ["dense", "bm25"])
def test_examples_are_the_retrievers(index: Index, strategy: str) -> None:
    selector = example_selector(index, k=4, retriever=strategy)
    [hits] = make_retriever(strategy, index).retrieve([QUERY], 4, exclude=Exclusion())
    found = selector.select_examples({"question": QUERY})
    assert [example["id"] for example in found] == [hit.id for hit in reversed(hits)]
    assert [float(example["score"]) for example in found] == pytest.approx(
        [hit.score for hit in reversed(hits)], abs=1e-4
    )
    for example in found:
        assert example["instruction"] == index.pool.get(example["id"]).instruction
        assert example["response"] == index.pool.get(example["id"]).response
    assert asyncio.run(selector.aselect_examples({"question": QUERY})) == found
    best_first = example_selector(index, k=4, retriever=strategy, most_similar_last=False)
    assert best_first.select_examples({"question": QUERY}) == found[::-1]


@needs_core
def test_a_few_shot_prompt_is_made_of_them(index: Index) -> None:
    from langchain_core.prompts import FewShotPromptTemplate, PromptTemplate

    prompt = FewShotPromptTemplate(
        example_selector=example_selector(index, k=2),
        example_prompt=PromptTemplate.from_template("Q: {instruction}\nA: {response}"),
        suffix="Q: {question}\nA:",
        input_variables=["question"],
    ).format(question=QUERY)
    [hits] = make_retriever("dense", index).retrieve([QUERY], 2, exclude=Exclusion())
    shown = [index.pool.get(hit.id) for hit in reversed(hits)]
    examples = [f"Q: {one.instruction}\nA: {one.response}" for one in shown]
    assert prompt == "\n\n".join([*examples, f"Q: {QUERY}\nA:"])


@needs_core
def test_wrong_wishes_are_named(index: Index) -> None:
    with pytest.raises(ConfigError, match="input_key"):
        example_selector(index).select_examples({"a": "x", "b": "y"})
    with pytest.raises(ConfigError, match="'c'"):
        example_selector(index, input_key="c").select_examples({"a": "x"})
    with pytest.raises(ConfigError, match="ragalign index add"):
        example_selector(index).add_example({"instruction": "x", "response": "y"})


@pytest.fixture(scope="module")
def service(index: Index, tiny_model: Path) -> Iterator[LiveApp]:
    pytest.importorskip("fastapi", reason="needs the `serve` extra")
    from ragalign.generation.upstream import Upstream
    from ragalign.serving import create_app

    aligner = Aligner.from_recipe("ica", index=index, tokenizer=Tokenizer.load(tiny_model), context_length=2048)
    with ScriptedServer(lambda _: "Air scatters blue light. 🙂", cached_tokens=3) as server:
        upstream = Upstream([server.base_url], model="m", timeout_s=20, context_length=2048)
        with LiveApp(create_app(aligner, generator=upstream, name="tiny")) as running:
            yield running


def test_chat_openai_notices_nothing(service: LiveApp) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    chat: Any = langchain_openai.ChatOpenAI(
        base_url=f"{service.url}/v1", api_key="none", model="tiny", temperature=0, max_tokens=64, max_retries=0
    )
    messages = [("system", "Be brief."), ("human", QUERY)]
    answer = chat.invoke(messages)
    assert answer.content == "Air scatters blue light. 🙂"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["input_tokens"] > 100
    assert "".join(chunk.content for chunk in chat.stream(messages)) == answer.content
    assert [one.content for one in chat.batch([messages] * 3)] == [answer.content] * 3

    async def stream() -> str:
        return "".join([chunk.content async for chunk in chat.astream(messages)])

    assert asyncio.run(stream()) == answer.content


@needs_core
@pytest.mark.parametrize("value", [5, None, ["q"], b"q"])
def test_a_query_that_is_no_text_is_refused_in_one_line(index: Index, value: Any) -> None:
    with pytest.raises(DataError, match=r"the input variable 'q' must be text, not \w+$"):
        example_selector(index).select_examples({"q": value})


@needs_core
@pytest.mark.parametrize("variables", [None, "q", ["q"]])
def test_input_that_is_no_mapping_is_refused_in_one_line(index: Index, variables: Any) -> None:
    with pytest.raises(DataError, match=r"the input variables must be a mapping, not \w+$"):
        example_selector(index, k=1, retriever="bm25").select_examples(variables)
