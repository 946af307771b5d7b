"""Who may send requests, how many, and how large."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.chat import CHAT, ask, post
from fixtures.live import LiveApp
from fixtures.scripted_server import ScriptedServer

from ragalign.errors import ConfigError
from ragalign.serving import Limits, ServingSettings
from ragalign.serving.keys import RateLimit
from ragalign.serving.settings import read_api_keys


def test_keys_are_asked_for_and_the_page_is_not_hidden(upstream_service: Any) -> None:
    settings = ServingSettings(api_keys=("first-key", "second-key"))
    with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}):
            answer = post(running.url, headers=headers)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        for key in ("first-key", "second-key"):
            assert post(running.url, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        for path in ("/", "/health", "/ready"):
            assert httpx.get(f"{running.url}{path}").status_code == 200


def test_keys_come_from_the_environment_and_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# staff\nthree\n\n one \n")
    assert read_api_keys(file, {"RAGALIGN_API_KEYS": "one, two"}) == ("one", "two", "three")
    file.write_text("# nobody yet\n")
    with pytest.raises(ConfigError, match="no key"):
        read_api_keys(file, {})
    with pytest.raises(ConfigError, match="missing"):
        read_api_keys(tmp_path / "missing", {})


def test_settings_do_not_show_keys() -> None:
    assert "secret" not in repr(ServingSettings(api_keys=("secret",), admin_key="secret"))


def test_a_rate_limit_refills() -> None:
    from ragalign.serving.errors import ApiError

    now = 0.0
    limit = RateLimit(2, clock=lambda: now)
    limit.take("a")
    limit.take("a")
    limit.take("b")
    with pytest.raises(ApiError) as refused:
        limit.take("a")
    assert (refused.value.status, refused.value.retry_after_s) == (429, 30)
    now = 30.0
    limit.take("a")


def test_each_key_has_its_own_rate(upstream_service: Any) -> None:
    settings = ServingSettings(limits=Limits(requests_per_minute=2), api_keys=("a", "b"))
    with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
        found = [post(running.url, headers={"Authorization": f"Bearer {key}"}) for key in "aaab"]
    assert [answer.status_code for answer in found] == [200, 200, 429, 200]
    assert int(found[2].headers["retry-after"]) >= 1
    assert found[2].json()["error"]["type"] == "rate_limit_error"


def test_bodies_have_limits(upstream_service: Any) -> None:
    settings = ServingSettings(limits=Limits(max_body_bytes=2000, max_messages=3, body_timeout_s=0.5))
    with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
        url = running.url
        assert post(url, ask("x" * 3000)).status_code == 413

        def endless() -> Any:
            while True:
                yield b" " * 1000

        headers = {"Content-Type": "application/json"}
        with httpx.Client() as client, suppress(httpx.WriteError):  # it may hang up while we are still sending
            assert client.post(f"{url}{CHAT}", content=endless(), headers=headers).status_code == 413
        many = {**ask(), "messages": [{"role": "user", "content": "x"}] * 4}
        assert post(url, many).json()["error"]["param"] == "messages"
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1]))) as slow:
            slow.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode())
            slow.sendall(b"Content-Length: 100\r\n\r\n{")
            slow.settimeout(10)
            assert b" 408 " in slow.recv(1000)
        assert not server.received


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b"\xff\xfe{}", "application/json", 400),
        (b'{"model": "tiny", "messages": NaN}', "application/json", 400),
        (b'{"model": "tiny", "messages": [], "seed": 1' + b"0" * 5000 + b"}", "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 400),
        (b"[" * 200_000 + b"]" * 200_000, "application/json", 400),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "application/json", 400),
        (
            b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stop": "\\uD800"}',
            "application/json",
            400,
        ),
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bytes_that_are_no_request(live: LiveApp, content: bytes, kind: str, status: int) -> None:
    answer = httpx.post(f"{live.url}{CHAT}", content=content, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


WRONG = {
    "floats": {"prompt": [1.5] * 240_000},
    "mixed": {"prompt": ["a"] * 150_000 + [1]},
    "messages": {"messages": [{}] * 200_000},
    "parts": {"messages": [{"role": "user", "content": [{}] * 200_000}]},
    "stops": {"stop": [1] * 300_000},
    "biases": {"logit_bias": {str(number): "x" for number in range(60_000)}},
    "tokens": {"stop_token_ids": ["x"] * 150_000},
    "exclude": {"ragalign": {"exclude": [1] * 300_000}},
    "where": {"ragalign": {"where": {"a": [None] * 150_000}}},
    "names": {"ragalign": {str(number): 1 for number in range(80_000)}},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_megabyte_of_wrong_items_costs_no_time(name: str) -> None:
    """Each of these once kept the event loop busy for up to 50 s. Errors are counted, not seconds."""
    from pydantic import ValidationError

    from ragalign.serving.requests import ChatRequest, CompletionRequest

    kind = CompletionRequest if "prompt" in WRONG[name] else ChatRequest
    with pytest.raises(ValidationError) as refused:
        kind.model_validate({"model": "tiny", "messages": ask()["messages"], "prompt": "x"} | WRONG[name])
    assert refused.value.error_count() <= 6
