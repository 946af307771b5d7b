"""The aligner on real parts: MiniLM, FAISS, the vLLM engine on CPU."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fixtures.scripted_server import ScriptedServer
from fixtures.tiny_model import build_tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign import Aligner, Index
from ragalign.aligner import Failure
from ragalign.encoders import Encoder
from ragalign.errors import BudgetError, ConfigError, DataError
from ragalign.generation import VllmGenerator
from ragalign.generation.openai import OpenAIGenerator
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import packaged_recipes
from ragalign.templates import Template
from ragalign.templates.streaming import CleanStream
from ragalign.tokenization import Tokenizer
from ragalign.types import Completion, Decoding, Delta, Output, Prompt, Query, Turn

SHORT = Decoding(temperature=0.0, max_tokens=12)


def query(number: int, text: str) -> Query:
    return Query(f"q{number}", (Turn("user", text),))


QUERIES = [query(n, text) for n, text in enumerate(("Why is the sky blue?", "How do I bake bread?", "Say hello."))]


@pytest.fixture(scope="session")
def aligner(starter_index: Path, tiny_model: Path, vllm_engine: VllmGenerator) -> Aligner:
    return Aligner.from_recipe("ica", index=starter_index, model=vllm_engine, tokenizer=tiny_model)


def test_the_example_of_the_design_page(starter_index: Path, tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    aligner = Aligner.from_recipe("ica", index=str(starter_index), model=str(model), backend="transformers")
    reply = aligner.chat([{"role": "user", "content": "How do brain cells move?"}], decoding=SHORT)
    assert isinstance(reply.text, str)
    assert len(reply.prompt.demonstrations) > 0
    assert reply.n_cached_tokens is None


@pytest.mark.parametrize("recipe", packaged_recipes())
def test_every_packaged_recipe_answers(
    recipe: str, starter_index: Path, tiny_model: Path, vllm_engine: VllmGenerator
) -> None:
    aligner = Aligner.from_recipe(recipe, index=starter_index, model=vllm_engine, tokenizer=tiny_model)
    completion = aligner.chat("Why is the sky blue?", decoding=SHORT)
    assert completion.finish_reason in ("stop", "length")
    assert len(completion.prompt.ids) + SHORT.max_tokens <= vllm_engine.context_length
    assert not any(stop in completion.text for stop in completion.prompt.stop)


def test_a_batch_comes_back_in_input_order_and_equals_single_answers(aligner: Aligner) -> None:
    batch = aligner.generate(QUERIES, decoding=SHORT)
    assert [one.prompt.pieces[-1] for one in batch] == [aligner.pack(q.text).pieces[-1] for q in QUERIES]
    assert [one.text for one in batch] == [aligner.chat(q.text, decoding=SHORT).text for q in QUERIES]


def test_the_next_batch_is_packed_while_one_is_decoded(aligner: Aligner, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [one.text for one in aligner.generate(QUERIES, decoding=SHORT)]
    monkeypatch.setattr("ragalign.aligner.aligner.MANY", 2)
    packed_by: list[str] = []
    plan = aligner.plan

    def noted(*given: Any, **more: Any) -> Any:
        packed_by.append(threading.current_thread().name)
        return plan(*given, **more)

    monkeypatch.setattr(aligner, "plan", noted)
    assert [one.text for one in aligner.generate(QUERIES, decoding=SHORT)] == whole
    assert len(packed_by) == 2
    assert packed_by[1] == "ragalign-ahead"
    too_long = [*QUERIES, query(3, "word " * 5000)]
    with pytest.raises(BudgetError):
        aligner.generate(too_long, decoding=SHORT)


def test_an_engine_elsewhere_answers_while_questions_are_retrieved_for(
    starter_index: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("ragalign.aligner.aligner.FEW", 2)
    asked = [query(n, f"Name {n} rivers.") for n in range(7)]
    asked.insert(3, query(7, "word " * 5000))
    with ScriptedServer(lambda body: str(len(body["prompt"]))) as server:
        aligner = Aligner.from_recipe(
            "ica",
            index=starter_index,
            model=OpenAIGenerator("tiny", server.base_url, api_key="none", send="token_ids", context_length=4096),
            tokenizer=tiny_model,
        )
        plan, sizes = aligner.plan, []

        def noted(queries: Sequence[Query], **more: Any) -> Any:
            sizes.append(len(queries))
            if len(sizes) > 1:  # the first questions are answered by now, or will be
                until = time.monotonic() + 10
                while not server.received and time.monotonic() < until:
                    time.sleep(0.01)
                assert server.received
            return plan(queries, **more)

        monkeypatch.setattr(aligner, "plan", noted)
        found = dict(aligner.iter_generate(asked, decoding=SHORT))
    assert sizes == [2, 2, 2, 2]
    assert sorted(found) == list(range(8))
    assert isinstance(found.pop(3), Failure)
    packed = [one for one in aligner.pack_many(asked, decoding=SHORT) if isinstance(one, Prompt)]
    assert [found[place].text for place in sorted(found)] == [str(len(one.ids)) for one in packed]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("retriever", "message"),
    [("exclude_near = 1.5", "near"), ('where = { colour = "red" }', "colour"), ("candidates = 0", "candidates")],
)
def test_recipes_are_checked_before_an_engine_starts(
    starter_index: Path, tiny_model: Path, tmp_path: Path, retriever: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: Any, **__: Any) -> Any:
        pytest.fail("an engine was started")

    monkeypatch.setattr("ragalign.executors.factory.start_generator", start)
    path = tmp_path / "r.toml"
    path.write_text(f'[template]\nform = "ica"\n[retriever]\nname = "dense"\n{retriever}\n')
    with pytest.raises(ConfigError, match=message):
        Aligner.from_recipe(path, index=starter_index, model=tiny_model)


def test_a_model_without_a_tokenizer_takes_another_ones(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        if (tiny_model / name).exists():
            shutil.copy(tiny_model / name, bare)
    asked: dict[str, Any] = {"backend": "transformers", "dtype": "float32", "tokenizer": tiny_model}
    with Aligner.from_recipe("zero-shot", model=bare, **asked) as aligner:
        found = aligner.chat("Why?", decoding=SHORT).text
    with Aligner.from_recipe("zero-shot", model=tiny_model, **asked) as aligner:
        assert aligner.chat("Why?", decoding=SHORT).text == found


def test_a_second_question_finds_its_prefix_in_the_cache(aligner: Aligner) -> None:
    first = aligner.chat("What shall I cook tonight?", decoding=SHORT)
    again = aligner.chat("What shall I cook tonight?", decoding=SHORT)
    assert again.n_cached_tokens is not None
    assert again.n_cached_tokens > (first.n_cached_tokens or 0)


def test_the_stream_adds_up_to_the_answer(aligner: Aligner) -> None:
    for asked in QUERIES:
        decoding = Decoding(temperature=0.0, max_tokens=40)
        deltas = list(aligner.stream(asked.text, decoding=decoding))
        whole = aligner.chat(asked.text, decoding=decoding)
        assert "".join(delta.text for delta in deltas) == whole.text
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        last = deltas[-1]
        assert (last.finish_reason, last.n_tokens) == (whole.finish_reason, whole.n_output_tokens)
        assert last.n_cached_tokens is not None


def test_a_question_is_never_its_own_demonstration(aligner: Aligner, starter_index: Path) -> None:
    for one in list(Index.open(starter_index).pool)[:10]:
        prompt = aligner.pack(f"  {one.instruction.upper()} ")
        assert one.id not in {used.id for used in prompt.demonstrations} | {left.id for left in prompt.dropped}


def test_a_conversation_is_rendered_turn_by_turn(aligner: Aligner) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    text = aligner.pack(turns).text
    assert text.startswith("Be brief.\n\n")
    assert text.endswith(
        "Question: One?\n\nHere’s an example answer: Two.\n\nQuestion: Three?\n\nHere’s an example answer:"
    )


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "Hi"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "tool", "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}],
    ],
)
def test_messages_out_of_order_are_refused(aligner: Aligner, messages: Sequence[dict[str, str]]) -> None:
    with pytest.raises(DataError):
        aligner.pack(messages)


def test_what_is_missing_is_said_before_any_work(starter_index: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="name an index"):
        Aligner.from_recipe("ica", tokenizer=tiny_model)
    with pytest.raises(ConfigError, match="no tokenizer"):
        Aligner.from_recipe("ica", index=starter_index)
    with pytest.raises(ConfigError, match="no generator"):
        Aligner.from_recipe("ica", index=starter_index, tokenizer=tiny_model).chat("Hi")
    with pytest.raises(ConfigError, match="dtype"):
        Aligner.from_recipe("ica", index=starter_index, tokenizer=tiny_model, dtype="float32")


texts = st.text(st.sampled_from("ab \n`#<\\:/|s") | st.characters(codec="utf-8"), max_size=60)


@pytest.mark.parametrize("form", ["ica", "urial", "urial-v5", "urial-v6", "plain"])
@given(
    pieces=st.lists(
        texts | st.sampled_from(["```", "\n```\n", "# Qu", "#\\ Query:", "</s>", "\nQuestion\\:", "<|im_end|>"])
    )
)
def test_cleaning_a_stream_equals_cleaning_the_whole(form: str, pieces: list[str]) -> None:
    template = Template.load(form)
    stream = CleanStream(template)
    streamed = [stream.push(piece) for piece in pieces]
    assert "".join(streamed) + stream.finish() == template.clean("".join(pieces))


class TestPackedAloneAndInABatch:
    """Without a planner, what else is asked changes nothing; with one, a batch is planned together."""

    @settings(max_examples=15)
    @given(st.permutations(["Why is the sky blue?", "How do I bake bread?", "Hi", "Hello.", "2 + 2?", "Hello."]))
    def test_the_prompt_is_the_same(self, packing_aligner: Aligner, asked: list[str]) -> None:
        alone = [packing_aligner.pack(text) for text in asked]
        together = packing_aligner.pack_many([query(n, text) for n, text in enumerate(asked)])
        for one, other in zip(alone, together, strict=True):
            assert isinstance(other, Prompt)
            assert one.token_ids == other.token_ids
            assert [used.id for used in one.demonstrations] == [used.id for used in other.demonstrations]

    def test_others_can_be_made_from_it(self, packing_aligner: Aligner) -> None:
        before = packing_aligner.pack("Say hello.")
        fewer = packing_aligner.with_packing(Packing(max_demonstrations=2))
        assert len(fewer.pack("Say hello.").demonstrations) == 2
        assert packing_aligner.with_retriever(None).pack("Say hello.").demonstrations == ()
        assert packing_aligner.pack("Say hello.").token_ids == before.token_ids


@pytest.fixture(scope="module")
def packing_aligner(starter_index: Path, tiny_model: Path, minilm: Encoder) -> Aligner:
    index = Index.open(starter_index, encoder=minilm)
    return Aligner.from_recipe("ica", index=index, tokenizer=tiny_model, context_length=2048)


def test_an_answer_that_is_over_has_stopped(tiny_model: Path) -> None:
    """A backend that ignores stop strings writes on until its tokens are spent; the answer is complete all the same."""
    raw = "Yes.\n```\n\n# Question:\n```\nAnd then"
    spoken = [*(Delta(char, number) for number, char in enumerate(raw, 1)), Delta("", len(raw), "length")]

    class Rambling:
        model, context_length, shares_cpu = "rambling", None, False

        def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
            for number, prompt in enumerate(prompts):
                yield number, Completion(prompt, (Output(raw, "length", len(raw)),))

        def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
            return [completion for _, completion in self.iter_generate(prompts, decoding)]

        def stream(self, prompt: Prompt, decoding: Decoding) -> Iterator[Delta]:
            yield from spoken

        def close(self) -> None: ...

    tokenizer = Tokenizer.load(tiny_model)
    aligner = Aligner(Packer(Template.load("urial"), tokenizer, Pool.from_demonstrations([])), None, Rambling())
    for completion in (aligner.chat("Is it?"), *aligner.generate(["Is it?"])):
        assert (completion.text, completion.finish_reason) == ("Yes.", "stop")
    parts = list(aligner.stream("Is it?"))
    assert "".join(part.text for part in parts) == "Yes."
    assert parts[-1].finish_reason == "stop"
    assert parts[-1].n_tokens < len(raw)
