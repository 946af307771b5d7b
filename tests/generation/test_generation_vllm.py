from __future__ import annotations

import json
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import TransformersGenerator, VllmGenerator
from ragalign.generation._vllm_start import CPU_BLOCK_SIZE
from ragalign.stopping import StopFilter, merge_stops
from ragalign.types import Decoding, Prompt

PromptMaker = Callable[..., Prompt]
PromptOf = Callable[[int, int], Prompt]
GREEDY = Decoding(max_tokens=24)
NOISY = Decoding(max_tokens=40, temperature=2.0, seed=3)
QUESTIONS = ["How do I boil an egg?", "Name three rivers.", "Hi", "Crème brûlée, 你好 🙂?", "A list is mutable and"]


def test_no_prompts_give_no_completions(vllm_engine: VllmGenerator) -> None:
    assert vllm_engine.generate([], GREEDY) == []


@pytest.mark.parametrize(
    "decoding",
    [
        GREEDY,
        replace(GREEDY, repetition_penalty=1.3),
        replace(GREEDY, presence_penalty=1.5, frequency_penalty=1.0),
        replace(GREEDY, repetition_penalty=0.8, frequency_penalty=-0.5),
        replace(GREEDY, output_repetition_penalty=1.3, presence_penalty=0.5),
    ],
    ids=["plain", "repetition", "presence-frequency", "encourage", "output-repetition"],
)
def test_greedy_answers_equal_those_of_transformers(
    vllm_engine: VllmGenerator,
    transformers_engine: TransformersGenerator,
    make_prompt: PromptMaker,
    make_prompt_of: PromptOf,
    decoding: Decoding,
) -> None:
    prompts = [make_prompt(question) for question in QUESTIONS]
    prompts += [make_prompt_of(length, 7000 + length) for length in (3, 33, 257)]
    ours, reference = vllm_engine.generate(prompts, decoding), transformers_engine.generate(prompts, decoding)
    assert [one.outputs for one in ours] == [one.outputs for one in reference]


def test_completions_come_back_in_input_order(
    vllm_engine: VllmGenerator, make_prompt: PromptMaker, make_prompt_of: PromptOf
) -> None:
    prompts = [make_prompt_of(length, 8000 + length) for length in (300, 2, 150, 40, 9)]
    prompts += [make_prompt(question) for question in QUESTIONS]
    completions = vllm_engine.generate(prompts, GREEDY)
    assert [one.prompt for one in completions] == prompts
    assert [one.text for one in completions] == [vllm_engine.generate([one], GREEDY)[0].text for one in prompts]
    assert all((one.n_output_tokens, one.finish_reason) == (24, "length") for one in completions)
    assert all(one.latency_s > 0 for one in completions)


def test_repeated_prompts_report_whole_cached_blocks(vllm_engine: VllmGenerator, make_prompt_of: PromptOf) -> None:
    for length in (1, 31, 32, 33, 64, 96, 100, 333):
        prompt = make_prompt_of(length, 9000 + length)
        queries, hits = vllm_engine.prefix_cache_counters()
        first, second = (vllm_engine.generate([prompt], GREEDY)[0] for _ in range(2))
        expected = (length - 1) // CPU_BLOCK_SIZE * CPU_BLOCK_SIZE  # the last token is never taken from the cache
        assert (first.n_cached_tokens, second.n_cached_tokens) == (0, expected)
        assert vllm_engine.prefix_cache_counters() == (queries + 2 * length, hits + expected)


def test_prompts_of_one_batch_share_their_prefix(vllm_engine: VllmGenerator, make_prompt_of: PromptOf) -> None:
    prefix = make_prompt_of(100, 9999).ids
    prompts = [Prompt(pieces=("",), ids=np.append(prefix, [300 + i, 301]).astype(np.int32)) for i in range(3)]
    assert [one.n_cached_tokens for one in vllm_engine.generate(prompts, GREEDY)] == [0, 96, 96]


def test_seeded_requests_survive_more_prompts_than_a_step_takes(
    vllm_engine: VllmGenerator, make_prompt_of: PromptOf
) -> None:
    # A step takes a few thousand tokens on CPUs; splitting a seeded request over two steps ended the engine.
    prompts = [make_prompt_of(900, key) for key in range(500, 512)]
    answers = vllm_engine.generate(prompts, replace(NOISY, max_tokens=3))
    assert [one.n_output_tokens for one in answers] == [3] * len(prompts)


def test_samples_are_seeded_one_by_one(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    prompts = [make_prompt(question) for question in QUESTIONS]
    many = vllm_engine.generate(prompts, replace(NOISY, n=3, seed=10))
    second = vllm_engine.generate([prompts[1]], replace(NOISY, seed=11))
    assert all(len({output.text for output in one.outputs}) == 3 for one in many)
    assert many[1].outputs[1] == second[0].outputs[0]
    assert [one.outputs for one in many] == [
        one.outputs for one in vllm_engine.generate(prompts, replace(NOISY, n=3, seed=10))
    ]
    unseeded, other = (vllm_engine.generate(prompts[:1], replace(NOISY, seed=None))[0] for _ in range(2))
    assert unseeded.text != other.text


@pytest.mark.parametrize("decoding", [GREEDY, NOISY], ids=["T0", "T2"])
@pytest.mark.parametrize("question", QUESTIONS)
def test_stream_equals_generate_and_leaks_no_stop_string(
    vllm_engine: VllmGenerator, make_prompt: PromptMaker, question: str, decoding: Decoding
) -> None:
    whole = vllm_engine.generate([make_prompt(question)], decoding)[0].text
    stops = [(), (whole[10:13],), (whole[7:9], whole[8:20]), (whole[5:20] + "never",)]
    for stop in stops:
        prompt = make_prompt(question, stop=stop)
        deltas = list(vllm_engine.stream(prompt, decoding))
        completion = vllm_engine.generate([prompt], decoding)[0]
        pieces_of_whole = StopFilter(merge_stops(stop))
        expected = pieces_of_whole.push(whole)
        assert completion.finish_reason == ("stop" if pieces_of_whole.stopped else "length")
        text = "".join(delta.text for delta in deltas)
        assert text == completion.text == expected + pieces_of_whole.finish()
        assert (deltas[-1].finish_reason, deltas[-1].n_tokens) == (completion.finish_reason, completion.n_output_tokens)


def test_stop_strings_of_the_decoding_count_too(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    whole = vllm_engine.generate([make_prompt("Hi")], GREEDY)[0].text
    decoding = replace(GREEDY, stop=(whole[6:9],))
    (completion,) = vllm_engine.generate([make_prompt("Hi", stop=("never",))], decoding)
    assert completion.text == whole[: whole.index(whole[6:9])]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab# é", max_size=30), st.lists(st.text(alphabet="ab# é", min_size=1, max_size=5), max_size=3))
def test_vllm_and_the_stop_filter_share_one_rule(text: str, stops: list[str]) -> None:
    """vLLM's own check, fed one character at a time with the order that `merge_stops` gives."""
    from vllm.v1.engine.detokenizer import check_stop_strings

    merged = list(merge_stops(stops))
    expected = text
    for end in range(1, len(text) + 1):
        if found := check_stop_strings(text[:end], 1, merged, False):
            expected = text[: found[1]]
            break
    pieces = StopFilter(merged)
    assert "".join(map(pieces.push, text)) + pieces.finish() == expected


def test_iter_generate_yields_what_is_finished_first(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    whole = vllm_engine.generate([make_prompt("Hi")], replace(GREEDY, max_tokens=200))[0].text
    early = make_prompt("Hi", stop=(whole[5:8],))
    indexes = [
        index for index, _ in vllm_engine.iter_generate([make_prompt("Hi"), early], replace(GREEDY, max_tokens=200))
    ]
    assert indexes == [1, 0]


def test_prompts_of_an_iterator_are_answered_while_the_next_are_made(
    vllm_engine: VllmGenerator, transformers_engine: TransformersGenerator, make_prompt: PromptMaker
) -> None:
    prompts = [make_prompt(question) for question in QUESTIONS]
    two = replace(NOISY, n=2)
    expected = dict(enumerate(one.outputs for one in vllm_engine.generate(prompts, two)))
    first = threading.Event()

    def made() -> Iterator[Prompt]:
        yield prompts[0]
        assert first.wait(30)
        yield from prompts[1:]

    found = {}
    for position, completion in vllm_engine.iter_generate(made(), two):
        first.set()
        assert completion.prompt is prompts[position]
        found[position] = completion.outputs
    assert found == expected
    greedy = {place: one.outputs for place, one in transformers_engine.iter_generate(iter(prompts), GREEDY)}
    assert greedy == dict(enumerate(one.outputs for one in transformers_engine.generate(prompts, GREEDY)))


def test_an_iterator_that_fails_loses_no_answer(
    vllm_engine: VllmGenerator,
    transformers_engine: TransformersGenerator,
    make_prompt: PromptMaker,
    make_prompt_of: PromptOf,
) -> None:
    def broken() -> Iterator[Prompt]:
        yield from map(make_prompt, QUESTIONS[:3])
        yield make_prompt_of(2048, 0)

    for engine in (vllm_engine, transformers_engine):
        found: list[int] = []
        with pytest.raises(GenerationError, match=r"^the prompt has 2,048 tokens"):
            found.extend(position for position, _ in engine.iter_generate(broken(), GREEDY))
        assert sorted(found) == [0, 1, 2]
    with pytest.raises(ConfigError, match="temperature"):  # at once, not at the first step
        vllm_engine.iter_generate(broken(), replace(GREEDY, temperature=-1.0))


def test_interleaved_callers_get_their_own_answers(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    prompts = [make_prompt(question) for question in QUESTIONS]
    expected = [one.text for one in vllm_engine.generate(prompts, NOISY)]
    first, second = vllm_engine.stream(prompts[0], NOISY), vllm_engine.stream(prompts[1], NOISY)
    begun = [next(first).text, next(second).text]
    between = vllm_engine.generate(prompts[2:], NOISY)
    texts = [text + "".join(delta.text for delta in rest) for text, rest in zip(begun, (first, second), strict=True)]
    assert texts + [one.text for one in between] == expected


def test_threads_share_the_engine(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    prompts = [make_prompt(f"{question} {number}") for question in QUESTIONS for number in range(4)]
    expected = [one.text for one in vllm_engine.generate(prompts, NOISY)]
    answers: dict[int, str] = {}

    def work(numbers: list[int]) -> None:
        for number in numbers:
            if number % 2:
                answers[number] = "".join(delta.text for delta in vllm_engine.stream(prompts[number], NOISY))
            else:
                answers[number] = vllm_engine.generate([prompts[number]], NOISY)[0].text

    numbers = list(range(len(prompts)))
    random.Random(0).shuffle(numbers)
    threads = [threading.Thread(target=work, args=(numbers[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(len(prompts))] == expected


def test_closed_iterators_leave_no_work_behind(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    long = replace(GREEDY, max_tokens=900)
    stream = vllm_engine.stream(make_prompt("Hi"), long)
    next(stream)
    stream.close()
    batch = vllm_engine.iter_generate([make_prompt("Hi", stop=("never",))] * 3 + [make_prompt("Hi")], long)
    unfinished = vllm_engine._llm.llm_engine
    assert not unfinished.has_unfinished_requests()
    next(batch)
    batch.close()  # type: ignore[attr-defined]
    assert not unfinished.has_unfinished_requests()
    assert vllm_engine._loop._boxes == {}


def test_answers_end_where_the_context_does(vllm_engine: VllmGenerator, make_prompt_of: PromptOf) -> None:
    assert vllm_engine.context_length == 2048
    prompts = [make_prompt_of(length, length) for length in (2040, 2047)]
    assert [one.n_output_tokens for one in vllm_engine.generate(prompts, GREEDY)] == [8, 1]
    queries = vllm_engine.prefix_cache_counters()
    with pytest.raises(
        GenerationError, match=r"^prompt 2 of 2 has 2,048 tokens, but .* has a context of 2,048 for prompt"
    ):
        vllm_engine.generate([prompts[0], make_prompt_of(2048, 0)], GREEDY)
    assert vllm_engine.prefix_cache_counters() == queries


@pytest.mark.parametrize(
    ("prompt", "decoding", "error", "message"),
    [
        (Prompt(pieces=(), ids=np.array([], np.int32)), GREEDY, GenerationError, "has no tokens"),
        (Prompt(pieces=("a",), ids=np.array([5, 99999], np.int32)), GREEDY, GenerationError, "token id 99999"),
        (Prompt(pieces=("a",), ids=np.array([5], np.int32), stop=("",)), GREEDY, ConfigError, "stop string is empty"),
        (Prompt(pieces=("a",), ids=np.array([5], np.int32)), Decoding(top_p=0), ConfigError, "top_p"),
    ],
    ids=["empty", "unknown-token", "empty-stop", "decoding"],
)
def test_bad_input_is_one_line_and_leaves_the_engine_alive(
    vllm_engine: VllmGenerator,
    make_prompt: PromptMaker,
    prompt: Prompt,
    decoding: Decoding,
    error: type[Exception],
    message: str,
) -> None:
    for call in (vllm_engine.stream, lambda one, how: vllm_engine.generate([one], how)):
        with pytest.raises(error, match=message) as raised:
            list(call(prompt, decoding))
        assert "\n" not in str(raised.value)
    with pytest.raises(error, match=message):
        vllm_engine.generate([make_prompt("Hi"), prompt], decoding)
    assert not vllm_engine._llm.llm_engine.has_unfinished_requests()
    assert len(vllm_engine.generate([make_prompt("Hi")], GREEDY)) == 1


def test_repetition_penalty_warns_once_about_long_prompts(
    tiny_model: Path, make_prompt_of: PromptOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragalign.generation.base.LONG_PROMPT_TOKENS", 100)
    generator = TransformersGenerator(tiny_model, device="cpu")
    decoding = replace(GREEDY, repetition_penalty=1.1, max_tokens=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        generator.generate([make_prompt_of(100, 0)], decoding)
        generator.generate([make_prompt_of(101, 0)], replace(decoding, repetition_penalty=1.0))
        assert caught == []
        generator.generate([make_prompt_of(101, 0)], decoding)
        generator.generate([make_prompt_of(101, 0)], decoding)
    (warning,) = caught
    assert warning.filename == __file__  # it points to the caller
    assert str(warning.message).startswith("repetition_penalty 1.1 also applies to the prompt: with prompts of 101")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantisation": "awq"}, "vLLM has no option 'quantisation'; did you mean 'quantization'"),
        ({"generation_config": "auto"}, "the vLLM option 'generation_config' cannot be changed"),
        ({"model": "./no/such/folder"}, "no model folder ./no/such/folder"),
        ({"tokenizer": Path("missing")}, "no model folder missing"),
    ],
    ids=["unknown", "own", "model", "tokenizer"],
)
def test_wrong_options_are_refused_before_the_engine_starts(
    tiny_model: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        VllmGenerator(**({"model": tiny_model} | options))


def test_only_one_engine_lives_in_a_process(vllm_engine: VllmGenerator, tiny_model: Path) -> None:
    with pytest.raises(GenerationError, match=r"already running in this process; close\(\) the first generator"):
        VllmGenerator(tiny_model)
    assert vllm_engine.generate([], GREEDY) == []


def test_prompts_are_left_as_they_were(vllm_engine: VllmGenerator, make_prompt: PromptMaker) -> None:
    prompt = make_prompt("Hi", stop=("never",))
    before = json.dumps([prompt.token_ids, prompt.stop, prompt.pieces])
    vllm_engine.generate([prompt, prompt], GREEDY)
    assert json.dumps([prompt.token_ids, prompt.stop, prompt.pieces]) == before
