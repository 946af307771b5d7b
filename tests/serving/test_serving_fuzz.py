"""Whatever a body holds, the answer is an answer or a clear 400; ``benchmarks/serving_fuzz.py`` sends thousands."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fixtures.attacks import ask_broken, try_heads, upstream_payloads
from fixtures.fuzz import broken_bodies, schema_bodies, send
from fixtures.live import LiveApp
from fixtures.scripted_server import ScriptedServer
from hypothesis import given, settings
from hypothesis import strategies as st

N = 150


@pytest.fixture(scope="module")
def service(upstream_service: Any) -> Iterator[LiveApp]:
    with ScriptedServer(lambda _: "An answer.") as server, upstream_service(server) as running:
        yield running


def survive(service: LiveApp, bodies: st.SearchStrategy[tuple[str, bytes]], caplog: pytest.LogCaptureFixture) -> None:
    statuses: dict[int, int] = {}
    with httpx.Client(base_url=service.url, timeout=60) as client:

        @settings(max_examples=N, database=None)
        @given(bodies)
        def work(request: tuple[str, bytes]) -> None:
            status = send(client, *request)
            statuses[status] = statuses.get(status, 0) + 1

        work()
    # Some get through: otherwise only the first check would be tested.
    assert statuses[200] >= 5
    assert statuses[400] >= 5
    assert not [
        record for record in caplog.records if record.name.startswith("ragalign") and record.levelno >= logging.ERROR
    ]


def test_bodies_made_from_the_schema(service: LiveApp, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis (the `dev` extra)")
    survive(service, schema_bodies(service.app.openapi()), caplog)


def test_bodies_that_no_schema_knows(service: LiveApp, caplog: pytest.LogCaptureFixture) -> None:
    survive(service, broken_bodies(), caplog)


def test_servers_that_send_nonsense(upstream_service: Any, caplog: pytest.LogCaptureFixture) -> None:
    statuses: dict[int, int] = {}
    with ScriptedServer() as server, upstream_service(server) as running:

        @settings(max_examples=N, database=None)
        @given(upstream_payloads(), st.booleans())
        def work(payload: tuple[bytes, ...], stream: bool) -> None:
            status = ask_broken(running.url, server, payload, stream=stream)
            statuses[status] = statuses.get(status, 0) + 1

        work()
    assert statuses[502] >= 5
    assert not [
        record for record in caplog.records if record.name.startswith("ragalign") and record.levelno >= logging.ERROR
    ]


def test_broken_heads(service: LiveApp) -> None:
    assert not [status for status in try_heads(service.url, 100, seed=1) if status >= 500]
