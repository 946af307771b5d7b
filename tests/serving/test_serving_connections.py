"""Clients that send too much, too slowly, or nothing: what they cost is bounded, key or no key."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from fixtures.chat import ask
from fixtures.live import LiveApp
from fixtures.raw_http import connect, exchange, is_closed, read_status, request
from fixtures.scripted_server import ScriptedServer

from ragalign.serving import Limits, ServingSettings
from ragalign.serving.protocol import BoundedProtocol

LIMITS = Limits(head_timeout_s=0.6, body_timeout_s=0.6, write_timeout_s=0.6, max_connections=40)


@pytest.fixture(scope="module", params=[(), ("a-key",)], ids=["open", "keys"])
def service(request: pytest.FixtureRequest, upstream_service: Any) -> Iterator[LiveApp]:
    settings = ServingSettings(limits=LIMITS, api_keys=request.param)
    with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
        yield running


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (request("GET", "/" + "a" * 9_000), 414),
        (request("GET", "/v1/models?" + "a" * 9_000), 414),
        (request("GET", "/", headers=("X-Long: " + "a" * 33_000,)), 431),
        (request("GET", "/", headers=tuple(f"X-{n}: y" for n in range(101))), 431),
        (request("GET", "/", headers=("Authorization: Bearer " + "k" * 40_000,)), 431),
        (b"no request at all\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, 400),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nbad header\r\n\r\n", 400),
    ],
    ids=["url", "query", "header", "headers", "key", "noise", "tls", "syntax"],
)
def test_large_heads_are_refused_before_the_key_is_looked_at(service: LiveApp, content: bytes, status: int) -> None:
    found, error = exchange(service.url, content)
    assert found == status
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nHost: x\r\nX: ", b"GET /", b"GET / HTTP/1.1\r\nX:y\r\n"])
def test_an_endless_head_is_not_taken(service: LiveApp, start: bytes) -> None:
    sent = 0
    with connect(service.url) as connection, suppress(ConnectionError):
        connection.sendall(start)
        for _ in range(2_000):
            connection.sendall(b"a" * 16_384)
            sent += 16_384
            time.sleep(0.001)
    assert sent < 8_000_000  # what the kernels of both sides hold, of 32 MB


def test_half_open_connections_are_closed(service: LiveApp) -> None:
    beginnings = (
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        request("POST", "/v1/models", body=b"{" * 9)[:-4],
    )
    with ExitStack() as stack:
        opened = [stack.enter_context(connect(service.url)) for _ in range(24)]
        for number, connection in enumerate(opened):
            connection.sendall(beginnings[number % len(beginnings)])
        until = time.monotonic() + 15
        assert all(is_closed(connection, max(0.1, until - time.monotonic())) for connection in opened)
    assert httpx.get(f"{service.url}/health").status_code == 200


def drip(url: str, start: bytes, endless: bytes) -> float:
    """Seconds for which the server lets a byte come in every now and then."""
    started = time.monotonic()
    with connect(url) as connection, suppress(ConnectionError):
        connection.sendall(start)
        connection.settimeout(0.05)
        while time.monotonic() - started < 30:
            connection.sendall(endless)
            with suppress(TimeoutError):
                if not connection.recv(10_000):
                    break
    return time.monotonic() - started


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/chat/completions"])
def test_who_sends_byte_by_byte_is_cut_off(service: LiveApp, path: str) -> None:
    assert drip(service.url, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ".encode(), b"a") < 10
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    assert drip(service.url, head.encode(), b" ") < 12


def test_a_second_request_has_a_deadline_too(service: LiveApp) -> None:
    with connect(service.url) as connection:
        connection.sendall(request("GET", "/health"))
        assert read_status(connection)[0] == 200
        connection.sendall(b"GET / HT")
        assert is_closed(connection, 10)


def test_requests_one_after_the_other_are_all_answered(service: LiveApp) -> None:
    with connect(service.url) as connection:
        connection.sendall(request("GET", "/health") * 3)
        received = b""
        while received.count(b'"ok"') < 3:
            part = connection.recv(10_000)
            assert part
            received += part
        time.sleep(1.0)  # an idle connection has longer than a head
        connection.sendall(request("GET", "/health"))
        assert read_status(connection)[0] == 200


def test_new_connections_take_the_place_of_waiting_ones(service: LiveApp) -> None:
    idle = [connect(service.url) for _ in range(LIMITS.max_connections + 20)]
    try:
        assert exchange(service.url, request("GET", "/health"))[0] == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_websocket_handshake_leads_nowhere(service: LiveApp) -> None:
    headers = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")
    headers += ("Sec-WebSocket-Version: 13",)
    assert exchange(service.url, request("GET", "/v1/models", headers=headers))[0] in (200, 400, 401)


def test_who_reads_nothing_is_cut_off(upstream_service: Any) -> None:
    limits = Limits(write_timeout_s=0.6, max_new_tokens=100_000)
    text = "word " * 1_000_000
    server = ScriptedServer(
        lambda _: text, chunks=lambda whole: [whole[n : n + 500] for n in range(0, len(whole), 500)]
    )
    with server, upstream_service(server, settings=ServingSettings(limits=limits)) as running:
        asked = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 100_000}
        body = json.dumps(asked | {"max_tokens": 1_900}).encode()
        with connect(running.url) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.sendall(request("POST", "/v1/completions", body=body))
            time.sleep(0.3)
            until = time.monotonic() + 20
            while running.service.admission.n_running:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert httpx.post(f"{running.url}/v1/chat/completions", json=ask(), timeout=60).status_code == 200


@pytest.mark.parametrize("headers", [("Connection: close",), ()], ids=["close", "idle"])
def test_a_little_that_is_never_read_keeps_no_connection_open(
    upstream_service: Any, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...]
) -> None:
    # So large that only what is left fits neither side's buffers, and so small that writing is never paused.
    monkeypatch.setattr("ragalign.serving.server._KEEPALIVE_S", 1)
    settings = ServingSettings(limits=Limits(write_timeout_s=0.6, max_new_tokens=100_000))
    with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
        protocols = set()
        made = BoundedProtocol.connection_made

        def noting(self: BoundedProtocol, transport: Any) -> None:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
            protocols.add(self)
            made(self, transport)

        monkeypatch.setattr(BoundedProtocol, "connection_made", noting)
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
            connection.connect(("127.0.0.1", int(running.url.rsplit(":", 1)[1])))
            connection.sendall(request("GET", "/openapi.json", headers=headers))
            until = time.monotonic() + 15
            while not protocols or any(protocol in protocol.connections for protocol in protocols):
                assert time.monotonic() < until
                time.sleep(0.05)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_who_leaves_within_the_body_is_a_disconnect(
    upstream_service: Any, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    with ScriptedServer() as server, upstream_service(server) as running:
        with connect(running.url) as connection:
            connection.sendall(request("POST", path, body=b'{"model": "tiny"' + b" " * 100)[:-50])
            time.sleep(0.3)
        until = time.monotonic() + 10
        while "ragalign_disconnects_total 1.0" not in (figures := httpx.get(f"{running.url}/metrics").text):
            assert time.monotonic() < until, [line for line in figures.splitlines() if "errors" in line]
            time.sleep(0.05)
        assert 'code="internal"' not in figures
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", ["/metrics", "/openapi.json", "/docs", "/v1/models", "/v1/", "/nowhere", "/metrics/"])
def test_with_keys_everything_but_the_page_and_probes_needs_one(upstream_service: Any, path: str) -> None:
    with ScriptedServer() as server:
        with upstream_service(server, settings=ServingSettings(api_keys=("k",))) as running:
            assert httpx.get(f"{running.url}{path}").status_code == 401
            key = {"Authorization": "Bearer k"}
            assert httpx.get(f"{running.url}{path}", headers=key).status_code != 401
            for open_path in ("/", "/inspector.js", "/inspector.css", "/health", "/ready"):
                assert httpx.get(f"{running.url}{open_path}").status_code == 200
        opened = ServingSettings(api_keys=("k",), open_metrics=True, open_schema=True)
        with upstream_service(server, settings=opened) as running:
            expected = 200 if path in ("/metrics", "/openapi.json") else 401
            assert httpx.get(f"{running.url}{path}").status_code == expected
