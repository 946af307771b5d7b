"""Batches over an endpoint: failures and closing lose no answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fixtures.openai_generator import DECODING, generator, prompt
from fixtures.scripted_server import Fault, ScriptedServer

from ragalign.errors import DataError, GenerationError
from ragalign.types import Prompt


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def collect(completions: Iterator[tuple[int, Any]]) -> tuple[dict[int, str], GenerationError | None]:
    done: dict[int, str] = {}
    try:
        for index, completion in completions:
            done[index] = completion.text
    except GenerationError as error:
        return done, error
    return done, None


def test_a_refused_request_does_not_stop_the_others() -> None:
    with ScriptedServer(faults=[Fault("status", status=400, message="too long")]) as server:
        prompts = [prompt(str(number)) for number in range(6)]
        done, error = collect(generator(server, concurrency=1, send="text").iter_generate(prompts, DECODING))
    assert done == {number: str(number) for number in range(1, 6)}
    assert str(error).startswith("1 of the 6 requests sent failed: ")
    assert "too long" in str(error)


def test_a_failing_endpoint_ends_the_batch_but_keeps_what_was_answered() -> None:
    proper: list[Fault] = [Fault("slow")] * 3
    broken = [Fault("status", status=500)] * 50
    with ScriptedServer(faults=proper + broken) as server:
        prompts = [prompt(str(number)) for number in range(40)]
        done, error = collect(generator(server, concurrency=1, max_retries=1).iter_generate(prompts, DECODING))
        assert len(server.received) == 5
    assert done == {0: "0", 1: "1", 2: "2"}
    assert "1 of the 4 requests sent failed" in str(error)


def test_requests_under_way_are_yielded_before_the_error() -> None:
    def answer(body: dict[str, Any]) -> str:
        time.sleep(0.3)
        return str(body["prompt"])

    with ScriptedServer(answer, faults=[Fault("status", status=401)]) as server:
        prompts = [prompt(str(number)) for number in range(20)]
        done, error = collect(generator(server, concurrency=4).iter_generate(prompts, DECODING))
    assert len(done) == 3
    assert "1 of the 4 requests sent failed" in str(error)


def test_prompts_are_made_while_others_are_answered() -> None:
    with ScriptedServer() as server:
        first = threading.Event()

        def made() -> Iterator[Prompt]:
            yield prompt("0")
            assert first.wait(10)
            yield from (prompt(str(number)) for number in range(1, 20))

        found = {}
        for position, completion in generator(server, concurrency=4).iter_generate(made(), DECODING):
            first.set()
            found[position] = completion.text
    assert found == {number: str(number) for number in range(20)}


def test_a_failure_to_make_prompts_loses_no_answer() -> None:
    def broken() -> Iterator[Prompt]:
        yield from (prompt(str(number)) for number in range(6))
        raise DataError("no seventh")

    with ScriptedServer(delay_s=0.05) as server:
        completions = generator(server, concurrency=4).iter_generate(broken(), DECODING)
        found: list[int] = []
        with pytest.raises(DataError, match="no seventh"):
            found.extend(position for position, _ in completions)
    assert sorted(found) == list(range(6))


def test_closing_ends_work_that_waits_for_prompts() -> None:
    never = threading.Event()

    def made() -> Iterator[Prompt]:
        yield prompt("0")
        never.wait(30)

    with ScriptedServer() as server:
        completions = generator(server, concurrency=4).iter_generate(made(), DECODING)
        next(completions)
        started = time.monotonic()
        completions.close()  # type: ignore[attr-defined]
        assert time.monotonic() - started < 5
        never.set()


def test_closing_the_iterator_ends_the_work() -> None:
    with ScriptedServer(delay_s=0.05) as server:
        completions = generator(server, concurrency=2).iter_generate([prompt("a")] * 100, DECODING)
        next(completions)
        completions.close()  # type: ignore[attr-defined]
        seen = len(server.received)
        time.sleep(0.2)
        assert len(server.received) == seen < 20
