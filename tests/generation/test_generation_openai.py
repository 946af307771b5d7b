from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fixtures.openai_generator import DECODING, KEY, generator, prompt
from fixtures.scripted_server import Fault, ScriptedServer

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation.openai import OpenAIGenerator
from ragalign.types import Decoding, Prompt


def texts(server: ScriptedServer, prompts: list[Prompt], decoding: Decoding = DECODING, **options: Any) -> list[str]:
    return [completion.text for completion in generator(server, **options).generate(prompts, decoding)]


@pytest.fixture(autouse=True)
def no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_no_prompts_need_no_server() -> None:
    assert OpenAIGenerator("tiny", "http://127.0.0.1:9/v1").generate([], DECODING) == []


def test_answers_come_back_in_input_order_with_bounded_concurrency() -> None:
    def answer(body: dict[str, Any]) -> str:
        time.sleep(0.03 if body["prompt"].endswith("0") else 0.0)  # the first of each ten is overtaken
        return body["prompt"]

    names = [f"query {number}" for number in range(40)]
    with ScriptedServer(answer) as server:
        assert texts(server, [prompt(name) for name in names], concurrency=4) == names
        assert 2 <= server.most_in_flight <= 4


def test_token_ids_text_and_parameters_are_sent_as_documented() -> None:
    decoding = Decoding(
        temperature=0.7,
        top_p=0.9,
        max_tokens=33,
        seed=7,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        stop=("END",),
    )
    with ScriptedServer(lambda body: "fine", cached_tokens=4) as server:
        (completion,) = generator(server, send="token_ids").generate([prompt("one two three", ("# Query",))], decoding)
        generator(server).generate([prompt("one two three")], Decoding())
    full, plain = (request.body for request in server.received)
    assert full == {
        "model": "tiny",
        "prompt": [5, 6, 7],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 33,
        "seed": 7,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "stop": ["# Query", "END"],
    }
    assert plain["prompt"] == "one two three"
    assert not {"seed", "stop", "repetition_penalty"} & set(plain)
    assert server.received[0].headers["authorization"] == f"Bearer {KEY}"
    assert (completion.text, completion.finish_reason) == ("fine", "stop")
    assert (completion.n_prompt_tokens, completion.n_output_tokens, completion.n_cached_tokens) == (3, 1, 4)
    assert completion.latency_s > 0


def test_cached_tokens_are_unknown_where_the_server_does_not_say() -> None:
    with ScriptedServer(usage=False) as server:
        (completion,) = generator(server).generate([prompt("a")], DECODING)
    assert completion.n_cached_tokens is None
    assert completion.n_output_tokens == 0


def test_n_answers_are_n_requests_with_seeds_in_sequence() -> None:
    def answer(body: dict[str, Any]) -> str:
        time.sleep(0.1 if body["seed"] == 10 else 0.0)  # the first is overtaken
        return f"{body['prompt']}/{body['seed']}"

    with ScriptedServer(answer) as server:
        completions = generator(server).generate([prompt("a"), prompt("b")], Decoding(n=3, seed=10))
    assert [[output.text for output in completion.outputs] for completion in completions] == [
        ["a/10", "a/11", "a/12"],
        ["b/10", "b/11", "b/12"],
    ]


def test_stop_strings_are_cut_even_if_the_server_ignores_them() -> None:
    with ScriptedServer(lambda body: "Yes.\n# Query:\nAnd now?") as server:
        assert texts(server, [prompt("a", ("# Query",))]) == ["Yes.\n"]


def test_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-from-environment")
    with ScriptedServer() as server:
        texts(server, [prompt("a")], api_key=None)
    assert server.received[0].headers["authorization"] == "Bearer sk-from-environment"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", status=429),
        Fault("status", status=500),
        Fault("status", status=503),
        Fault("drop"),
        Fault("truncate"),
        Fault("html"),
        Fault("slow", seconds=1.0),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.status}",
)
def test_passing_faults_are_retried(fault: Fault) -> None:
    names = ["a", "b", "c", "d"]
    with ScriptedServer(faults=[fault, fault]) as server:
        assert texts(server, [prompt(name) for name in names], timeout_s=0.5) == names
        assert len(server.received) == 6


def test_retry_after_is_honoured() -> None:
    with ScriptedServer(faults=[Fault("status", status=429, headers={"Retry-After": "1"})]) as server:
        assert texts(server, [prompt("a")]) == ["a"]
    first, second = server.received
    assert second.at - first.at >= 0.95


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("status", status=429, message="slow down"), "responded with status 429: slow down"),
        (Fault("status", status=401, message="bad key"), r"status 401: bad key; check OPENAI_API_KEY"),
        (Fault("status", status=404, message="no model tiny"), "responded with status 404: no model tiny"),
        (Fault("drop"), "cannot be reached: "),
        (Fault("truncate"), "sent an invalid completion: "),
        (Fault("html"), "sent an invalid completion: .*<html><body>Bad gateway"),
        (Fault("slow", seconds=0.6), r"timed out 2 times after 0\.2 s"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else "",
)
def test_lasting_faults_name_the_endpoint_and_the_reason(fault: Fault, message: str) -> None:
    with ScriptedServer(faults=[fault] * 2) as server:
        url = server.base_url
        with pytest.raises(GenerationError, match=message) as raised:
            texts(server, [prompt("a")], max_retries=1, timeout_s=0.2)
    assert url in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": 1.5}}',
        b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": "7"}}',
    ],
    ids=["deep", "fraction", "text"],
)
def test_nonsense_is_retried_and_then_named(payload: bytes) -> None:
    def faults() -> list[Fault]:
        return [Fault("send", payload=lambda: (payload,))] * 2

    with ScriptedServer(faults=faults()) as server:
        assert texts(server, [prompt("a")], max_retries=2) == ["a"]
        server.faults.extend(faults())
        with pytest.raises(GenerationError, match="sent an invalid completion") as raised:
            texts(server, [prompt("a")], max_retries=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("json: cannot unmarshal array into field prompt of type string", True),
        ("data did not match any variant of untagged enum Prompt", True),
        ("the maximum context length is 2048 tokens", False),
    ],
)
def test_servers_that_take_no_token_ids_give_a_hint(message: str, hint: bool) -> None:
    faults = [Fault("status", status=422, message=message)]
    with ScriptedServer(faults=faults) as server, pytest.raises(GenerationError) as raised:
        generator(server, send="token_ids").generate([prompt("a")], DECODING)
    assert ('use send="text"' in str(raised.value)) == hint


def test_nobody_listens() -> None:
    with pytest.raises(GenerationError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached"):
        OpenAIGenerator("tiny", "http://127.0.0.1:9/v1", max_retries=1).generate([prompt("a")], DECODING)


def test_the_key_is_in_no_message() -> None:
    fault = Fault("status", status=401, message=f"Incorrect API key: {KEY}")
    with ScriptedServer(faults=[fault]) as server:
        one = generator(server)
        with pytest.raises(GenerationError, match=r"Incorrect API key: \*\*\*") as raised:
            one.generate([prompt("a")], DECODING)
    assert KEY not in str(raised.value) + repr(one)


def test_credentials_in_the_url_are_in_no_message() -> None:
    with pytest.raises(GenerationError) as raised:
        OpenAIGenerator("tiny", "http://user:pass@127.0.0.1:9/v1", max_retries=0).generate([prompt("a")], DECODING)
    assert "pass" not in str(raised.value)
    assert "http://127.0.0.1:9/v1" in str(raised.value)


def test_works_inside_a_running_event_loop() -> None:
    async def main(server: ScriptedServer) -> list[str]:
        return texts(server, [prompt("a"), prompt("b")])

    with ScriptedServer() as server:
        assert asyncio.run(main(server)) == ["a", "b"]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 100])
def test_stream_equals_generate_and_leaks_no_stop_string(width: int) -> None:
    answer = "Crème brûlée 🙂.\n# Quiz\n# Query:\nforged"

    def chunks(text: str) -> list[str]:
        return [text[begin : begin + width] for begin in range(0, len(text), width)]

    with ScriptedServer(lambda body: answer, chunks=chunks) as server:
        one = prompt("a", ("# Query",))
        deltas = list(generator(server).stream(one, DECODING))
        streamed = "".join(delta.text for delta in deltas)
        assert streamed == texts(server, [one])[0] == "Crème brûlée 🙂.\n# Quiz\n"
        assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + ["stop"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("cut_stream"), "ended its stream before the answer was finished"),
        (Fault("html"), "ended its stream before the answer was finished"),
        (Fault("status", status=404, message="no model tiny"), "responded with status 404: no model tiny"),
        (Fault("drop"), "cannot be reached"),
    ],
    ids=lambda value: value.kind if isinstance(value, Fault) else "",
)
def test_broken_streams_raise(fault: Fault, message: str) -> None:
    with ScriptedServer(faults=[fault]) as server, pytest.raises(GenerationError, match=message):
        list(generator(server, max_retries=0).stream(prompt("a long answer"), DECODING))


def test_a_stream_is_one_answer() -> None:
    with pytest.raises(ConfigError, match="n must be 1 for streams, not 2"):
        OpenAIGenerator("tiny", "http://127.0.0.1:9/v1").stream(prompt("a"), Decoding(n=2))


def test_prompts_beyond_a_known_context_are_not_sent() -> None:
    with ScriptedServer() as server:
        one = generator(server, context_length=4)
        assert one.context_length == 4
        with pytest.raises(
            GenerationError, match=r"prompt 2 of 2 has 4 tokens, but tiny has a context of 4 for prompt"
        ):
            one.generate([prompt("a b c"), prompt("a b c d")], DECODING)
        assert server.received == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url must be http:// or https://"),
        ({"base_url": "http://"}, "with a host, and a port"),
        ({"base_url": "http://localhost:99999/v1"}, "port from 1 to 65535 if any, not 'http://localhost:99999"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout_s": 0}, "timeout_s must be above 0"),
        ({"max_retries": -1}, "max_retries must be at least 0"),
        ({"send": "ids"}, 'send must be "token_ids" or "text"'),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenAIGenerator(**({"model": "tiny", "base_url": "http://127.0.0.1:9/v1"} | options))
