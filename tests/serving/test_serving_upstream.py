"""Completion servers behind the service that die, dawdle, refuse and talk nonsense."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest
from fixtures.chat import MESSAGES, ask
from fixtures.scripted_server import Fault, ScriptedServer

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation.upstream import Upstream
from ragalign.serving.settings import read_upstream_key

CHAT = "/v1/chat/completions"


def post(url: str, **more: Any) -> httpx.Response:
    return httpx.post(f"{url}{CHAT}", json=ask(**more), timeout=60)


def test_an_upstream_gets_the_exact_tokens(upstream_service: Any) -> None:
    with ScriptedServer(lambda _: " An answer.", cached_tokens=5) as server, upstream_service(server) as running:
        answer = post(running.url, ragalign={"explain": True}, temperature=0.5, stop=["x"], seed=4, n=2).json()
        packer = running.service.catalog.aligners["zero-shot"].packer
    sent = [received.body for received in server.received]
    text = "".join(piece["text"] for piece in answer["ragalign"]["pieces"])
    expected = [*packer.tokenizer.prefix_ids, *packer.tokenizer.encode(text)]
    assert [body["prompt"] for body in sent] == [expected] * 2
    assert sorted(body["seed"] for body in sent) == [4, 5]
    assert sent[0]["temperature"] == 0.5
    assert set(packer.template.stops) | {"x"} == set(sent[0]["stop"])
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["An answer."] * 2
    assert answer["usage"]["prompt_tokens"] == len(expected)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 5}


def test_the_servers_key_is_sent_and_asked_for() -> None:
    with ScriptedServer(lambda _: "An answer.") as server:
        upstream = Upstream([server.base_url], model="m", api_key="secret")
        assert upstream._headers == {"Authorization": "Bearer secret"}
    assert read_upstream_key({"RAGALIGN_UPSTREAM_KEY": " secret\n"}) == "secret"
    assert read_upstream_key({}) is None
    with pytest.raises(ConfigError, match="printable ASCII"):
        read_upstream_key({"RAGALIGN_UPSTREAM_KEY": "schlüssel"})


def test_a_server_that_refuses_the_key_is_named(refusing: str) -> None:
    with pytest.raises(GenerationError, match=r"refuses the API key \(status 401\); set RAGALIGN_UPSTREAM_KEY"):
        Upstream([refusing])


@pytest.fixture
def refusing() -> Iterator[str]:
    """The address of a server that answers every GET with 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(401)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault("status", 500), 502),
        (Fault("status", 503), 503),
        (Fault("status", 429), 503),
        (Fault("status", 400, message="too long"), 400),
        (Fault("status", 401), 502),
        (Fault("drop"), 502),
        (Fault("html"), 502),
        (Fault("truncate"), 502),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True])
def test_faults_have_their_status(upstream_service: Any, fault: Fault, status: int, stream: bool) -> None:
    if stream and fault.kind == "truncate":
        pytest.skip("a stream is cut, not truncated")
    with ScriptedServer(faults=[fault]) as server, upstream_service(server) as running:
        answer = post(running.url, stream=stream)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert post(running.url, stream=stream).status_code == 200


def test_a_slow_upstream_times_out(upstream_service: Any) -> None:
    slow = ScriptedServer(faults=[Fault("slow", seconds=3)])
    with slow as server, upstream_service(server, timeout_s=0.5) as running:
        started = time.monotonic()
        answer = post(running.url)
        assert answer.status_code == 504
        assert time.monotonic() - started < 2.5
        assert post(running.url).status_code == 200


def test_a_stream_that_breaks_ends_in_an_error_that_clients_see(upstream_service: Any) -> None:
    with (
        ScriptedServer(faults=[Fault("cut_stream")]) as server,
        upstream_service(server) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError):
            list(stream)


def event(**choice: Any) -> bytes:
    body = {"choices": [{"index": 0, "text": "a", "finish_reason": None, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def sends(*parts: bytes) -> Fault:
    return Fault("send", payload=lambda: parts)


DEEP = b"[" * 100_000 + b"]" * 100_000
GOOD = b'{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": %b}'
NAN = b'{"tokens": ["a"], "token_logprobs": [NaN], "top_logprobs": [{"a": NaN}]}'


@pytest.mark.parametrize(
    "payload",
    [
        DEEP,
        b'{"choices": ' + DEEP + b"}",
        b"",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"text": 1}]}',
        b'{"choices": [{"text": "a"}, {"text": "b"}]}',
        GOOD % b'{"completion_tokens": 1.5}',
        GOOD % b'{"completion_tokens": -1}',
        GOOD % b'{"completion_tokens": "7"}',
        GOOD % b'{"completion_tokens": 1000000000000000000000000}',
        GOOD % b'{"prompt_tokens_details": {"cached_tokens": 0.5}}',
        GOOD % b'{"prompt_tokens_details": [1]}',
        GOOD % b"7",
        b'{"choices": [{"text": "a", "logprobs": ' + NAN + b"}]}",
        b'{"choices": [{"text": "' + b"a" * 17_000_000 + b'"}]}',
    ],
    ids=lambda payload: payload[:60].decode(),
)
@pytest.mark.parametrize("stream", [False, True])
def test_nonsense_is_the_upstreams_fault(
    upstream_service: Any, caplog: pytest.LogCaptureFixture, payload: bytes, stream: bool
) -> None:
    if stream:
        payload = b"data: " + payload + b"\n\n"
    with ScriptedServer(faults=[sends(payload)]) as server, upstream_service(server) as running:
        answer = post(running.url, stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (502, "upstream_error"), answer.text
        assert "\n" not in error["message"]
        assert post(running.url, stream=stream).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and "ragalign" in record.name]
    assert [record for record in caplog.records if "upstream_error" in record.getMessage()]


@pytest.mark.parametrize(
    "fault",
    [
        sends(event(), DEEP + b"\n\n", b"data: " + DEEP + b"\n\n"),
        sends(event(), b'data: {"error": {"message": "out of memory"}}\n\n'),
        sends(event(), b"data: " + GOOD % b'{"completion_tokens": 0.5}' + b"\n\n"),
        sends(event(), b"data: {\n\n"),
        sends(event(), event(text=5)),
        sends(event(), b"data: " + b"a" * 2_000_000 + b"\n\n"),
        sends(event()),
    ],
    ids=["deep", "error", "usage", "no json", "text", "long", "end"],
)
def test_a_fault_in_mid_stream_is_an_event_and_the_upstreams(
    upstream_service: Any, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    with ScriptedServer(faults=[fault]) as server, upstream_service(server) as running:
        # Two tokens are held back or shown; either way the status is decided by whether there was any text.
        plain = {"model": "tiny", "prompt": "x", "stream": True}
        answer = httpx.post(f"{running.url}/v1/completions", json=plain, timeout=60)
        figures = httpx.get(f"{running.url}/metrics").text
    assert answer.status_code == 200
    *_, last, end = [line for line in answer.text.splitlines() if line]
    assert end == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "upstream_error"
    assert 'ragalign_errors_total{code="upstream_error"} 1.0' in figures
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and "ragalign" in record.name]


@pytest.mark.parametrize("parts", [b"word ", b"word " * 1_000])
def test_an_endless_answer_ends_at_max_tokens(upstream_service: Any, parts: bytes) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield event(text=parts.decode())

    with ScriptedServer(faults=[Fault("send", payload=endless)]) as server, upstream_service(server) as running:
        body = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 20}
        started = time.monotonic()
        answer = httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)
        assert time.monotonic() - started < 10
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        assert sum(chunk["choices"][0]["text"].count("word") for chunk in chunks) <= 20 * len(parts) // 5
        until = time.monotonic() + 10
        while not server.n_hung_up:  # we have closed the connection
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.parametrize("reported", ["logprobs", "usage", "neither"])
def test_a_whole_answer_ends_at_max_tokens(upstream_service: Any, reported: str) -> None:
    tokens = [f"w{number:05} " for number in range(50_000)]
    choice: dict[str, Any] = {"text": "".join(tokens), "finish_reason": "stop"}
    if reported == "logprobs":
        choice["logprobs"] = {"tokens": tokens, "token_logprobs": [-1.0] * len(tokens)}
    body = {"choices": [choice], **({"usage": {"completion_tokens": len(tokens)}} if reported == "usage" else {})}
    fault = sends(json.dumps(body).encode())
    with ScriptedServer(faults=[fault]) as server, upstream_service(server) as running:
        asked = {"model": "tiny", "prompt": "x", "max_tokens": 20, "logprobs": 0}
        answer = httpx.post(f"{running.url}/v1/completions", json=asked, timeout=60).json()
    [found] = answer["choices"]
    assert (found["finish_reason"], answer["usage"]["completion_tokens"]) == ("length", 20)
    assert len(found["text"]) <= 20 * 512
    if reported != "neither":
        assert found["text"] == "".join(tokens[:20])
        assert len(found["logprobs"]["tokens"]) in (0, 20)


def test_events_without_text_do_not_go_on_for_ever(upstream_service: Any) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield event(text="")

    with ScriptedServer(faults=[Fault("send", payload=endless)]) as server, upstream_service(server) as running:
        assert post(running.url, stream=True).status_code == 502


def test_a_line_of_48_mb_is_given_up_at_once(upstream_service: Any) -> None:
    def long() -> Iterator[bytes]:
        yield b"data: "
        for _ in range(48):
            yield b"a" * 1_000_000

    with ScriptedServer(faults=[Fault("send", payload=long)]) as server, upstream_service(server) as running:
        started = time.monotonic()
        answer = post(running.url, stream=True)
        assert (answer.status_code, time.monotonic() - started < 10) == (502, True)
        assert server.n_sent < 30


def test_probability_zero_is_valid_json(upstream_service: Any) -> None:
    logprobs = b'{"tokens": ["a"], "token_logprobs": [-Infinity], "top_logprobs": [{"a": -Infinity}]}'
    payload = b'{"choices": [{"text": "a", "finish_reason": "stop", "logprobs": ' + logprobs + b"}]}"
    with ScriptedServer(faults=[sends(payload)]) as server, upstream_service(server) as running:
        answer = post(running.url, logprobs=True, top_logprobs=1)
    found = json.loads(answer.text, parse_constant=lambda name: pytest.fail(name))
    assert found["choices"][0]["logprobs"]["content"][0]["logprob"] == -9999.0


def test_a_server_that_dies_and_comes_back(upstream_service: Any) -> None:
    server = ScriptedServer()
    with server:
        running = upstream_service(server)
        running.__enter__()
        assert post(running.url).status_code == 200
    try:
        started = time.monotonic()
        answer = post(running.url)
        assert time.monotonic() - started < 2
        assert answer.status_code in (502, 503)
        answer = post(running.url)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"{running.url}/ready").status_code == 503
        assert httpx.get(f"{running.url}/health").status_code == 200
        with ScriptedServer(port=server.port):
            until = time.monotonic() + 10
            while post(running.url).status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
            assert httpx.get(f"{running.url}/ready").status_code == 200
    finally:
        running.__exit__(None, None, None)


def test_no_error_ends_the_health_checks(upstream_service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    send, calls = httpx.AsyncClient.send, 0

    async def failing(client: httpx.AsyncClient, *given: Any, **more: Any) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls <= 2:  # what anyio says of a socket that is gone as soon as it is there
            raise AttributeError("'NoneType' object has no attribute 'getpeername'")
        return await send(client, *given, **more)

    monkeypatch.setattr(httpx.AsyncClient, "send", failing)
    with ScriptedServer() as server, upstream_service(server) as running:
        until = time.monotonic() + 10
        while calls < 4:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert post(running.url).status_code == 200


def test_load_is_spread_and_a_dead_server_is_left_out(upstream_service: Any) -> None:
    with ScriptedServer(delay_s=0.2) as first, ScriptedServer(delay_s=0.2) as second:
        with upstream_service(first, second, affinity="none") as running:
            with ThreadPoolExecutor(8) as threads:
                answers = list(threads.map(lambda _: post(running.url).status_code, range(16)))
            assert answers == [200] * 16
            assert len(first.received) == len(second.received) == 8
            with socket.create_server(("127.0.0.1", 0)) as free:
                dead = f"http://127.0.0.1:{free.getsockname()[1]}"
        with upstream_service(dead, second) as running:
            assert [post(running.url).status_code for _ in range(6)] == [200] * 6


def test_unicode_line_ends_do_not_cut_events(upstream_service: Any) -> None:
    text = "a\u2028b\u0085c\x0bd🙂\u00e9e"
    with (
        ScriptedServer(lambda _: text) as server,
        upstream_service(server) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client,
    ):
        chunks = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
