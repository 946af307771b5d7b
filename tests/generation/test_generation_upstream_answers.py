"""What servers send is taken as an answer or refused in one line, whatever it is."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.generation._upstream_answers import (
    MAX_EVENT_BYTES,
    BadAnswerError,
    error_message,
    parse_answer,
    parse_object,
    read_events,
)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def events(parts: Iterable[bytes]) -> list[dict[str, Any]]:
    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    async def read() -> list[dict[str, Any]]:
        return [event async for event in read_events(httpx.Response(200, content=content()))]

    return asyncio.run(read())


def choice(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"text": "a", "finish_reason": None, **fields}]}


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "choices": _VALUES
            | st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "text": _VALUES,
                        "finish_reason": _VALUES,
                        "logprobs": _VALUES
                        | st.fixed_dictionaries(
                            {}, optional=dict.fromkeys(("tokens", "token_logprobs", "top_logprobs"), _VALUES)
                        ),
                    },
                ),
                max_size=2,
            ),
            "usage": _VALUES
            | st.fixed_dictionaries({}, optional={"completion_tokens": _VALUES, "prompt_tokens_details": _VALUES}),
        },
    )
)
def test_any_body_is_an_answer_or_a_clear_refusal(body: dict[str, Any]) -> None:
    refusal: str | None = None
    try:
        answer = parse_answer(body)
    except BadAnswerError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("sent ")
        assert "\n" not in refusal
        return
    assert isinstance(answer.text, str)
    assert answer.n_tokens is None or (isinstance(answer.n_tokens, int) and answer.n_tokens >= 0)
    numbers = [number for token in answer.logprobs for number in (token.logprob, *(value for _, value in token.top))]
    assert all(math.isfinite(number) for number in numbers)
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize("value", [1.5, -1, True, "7", 10**30, 1e400, [], {}, math.nan])
@pytest.mark.parametrize("cached", [False, True])
def test_counts_are_counts(value: Any, cached: bool) -> None:
    usage = {"prompt_tokens_details": {"cached_tokens": value}} if cached else {"completion_tokens": value}
    with pytest.raises(BadAnswerError, match="tokens"):
        parse_answer(choice() | {"usage": usage})


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"x"', "true", "[]", "1e5"])
def test_log_probabilities_are_numbers(value: str) -> None:
    for place in (
        '"token_logprobs": [%s], "top_logprobs": [null]',
        '"token_logprobs": [-1], "top_logprobs": [{"b": %s}]',
    ):
        logprobs = '{"tokens": ["a"], ' + place % value + "}"
        body = parse_object(f'{{"choices": [{{"text": "a", "logprobs": {logprobs}}}]}}'.encode())
        with pytest.raises(BadAnswerError, match="log-probability"):
            parse_answer(body)


def test_probability_zero_is_the_lowest_number() -> None:
    logprobs = (
        b'{"tokens": ["a", "b"], "token_logprobs": [-Infinity, -1e308], "top_logprobs": [{"c": -Infinity}, null]}'
    )
    found = parse_answer(parse_object(b'{"choices": [{"text": "ab", "logprobs": ' + logprobs + b"}]}")).logprobs
    assert [token.logprob for token in found] == [-9999.0, -9999.0]
    assert found[0].top == (("c", -9999.0),)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{", "invalid JSON"),
        (b"", "invalid JSON"),
        (b"\xff\xfe", "invalid JSON"),
        (b'{"a": 1' + b"0" * 5_000 + b"}", "a number that has too many digits"),
        (b"[]", "sent a list instead of a JSON object"),
        (b"NaN", "sent a number instead of a JSON object"),
        (b"null", "sent null instead of a JSON object"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_no_object(data: bytes, words: str) -> None:
    with pytest.raises(BadAnswerError, match=words):
        parse_object(data)


@given(
    st.lists(st.dictionaries(st.text(max_size=8), st.text(max_size=8) | st.integers(), max_size=3), max_size=6),
    st.integers(1, 7),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_events_come_whole_for_any_chunks(sent: list[dict[str, Any]], size: int, end: str, closed: bool) -> None:
    lines = [f"event: x{end}: comment{end}data: {json.dumps(event, ensure_ascii=False)}{end}{end}" for event in sent]
    stream = "".join([*lines, f"data: [DONE]{end}{end}" if closed else ""]).encode("utf-8", "replace")
    found = events(stream[start : start + size] for start in range(0, len(stream), size))
    assert len(found) == len(sent)
    assert found == [json.loads(json.dumps(event).encode("utf-8", "replace")) for event in sent] or "\\ud" in str(sent)


def test_an_event_of_several_lines_and_one_without_an_end() -> None:
    assert events([b'data: {"a":\ndata: 1}\n\n', b'data: {"b": 2}']) == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("start", [b"data: ", b": ", b""])
def test_a_line_without_end_is_given_up(start: bytes) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        yield start
        while taken < 64:
            taken += 1
            yield b"a" * 65_536

    with pytest.raises(BadAnswerError, match="more than"):
        events(endless())
    assert taken <= MAX_EVENT_BYTES // 65_536 + 2


def test_data_lines_without_end_are_given_up() -> None:
    with pytest.raises(BadAnswerError, match="more than"):
        events([b"data: " + b"a" * 1_000 + b"\n"] * 2_000)


@pytest.mark.parametrize(
    "body", [{"error": {"message": "no\nway"}}, {"error": "no way"}, {"message": "no way"}, {"detail": "no way"}]
)
def test_a_servers_own_words_are_one_line(body: Any) -> None:
    assert error_message(body) == "no way"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"choices": [null]}', r"sent null as choices\[0\]"),
        ('{"choices": [{"text": 5}]}', r"sent a number as choices\[0\].text"),
        ('{"choices": {}}', "sent an object as choices"),
        ('{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1%s]}}]}' % ("0" * 400), None),
        (
            '{"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [1%s]}}]}' % ("0" * 400),
            "as a log",
        ),
    ],
    ids=["null", "number", "object", "huge", "above one"],
)
def test_what_is_no_answer(body: str, words: str | None) -> None:
    if words is None:
        assert parse_answer(parse_object(body.encode())).logprobs[0].logprob == -9999.0
        return
    with pytest.raises(BadAnswerError, match=words):
        parse_answer(parse_object(body.encode()))
