"""Completion servers behind the service that die, dawdle, refuse and talk nonsense."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from fixtures.chat import MESSAGES, ask
from fixtures.scripted_server import Fault, ScriptedServer

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
    get, calls = httpx.AsyncClient.get, 0

    async def failing(client: httpx.AsyncClient, *given: Any, **more: Any) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls <= 2:  # what anyio says of a socket that is gone as soon as it is there
            raise AttributeError("'NoneType' object has no attribute 'getpeername'")
        return await get(client, *given, **more)

    monkeypatch.setattr(httpx.AsyncClient, "get", failing)
    with ScriptedServer() as server, upstream_service(server) as running:
        until = time.monotonic() + 10
        while calls < 4:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert post(running.url).status_code == 200


def test_load_is_spread_and_a_dead_server_is_left_out(upstream_service: Any) -> None:
    with ScriptedServer(delay_s=0.2) as first, ScriptedServer(delay_s=0.2) as second:
        with upstream_service(first, second) as running:
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
