"""Completion servers that differ, go, come back, are slow or overloaded, and which of them gets what."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from fixtures.scripted_server import Fault, ScriptedServer

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._upstream_servers import Servers
from ragalign.generation.affinity import affinity_key, ranked
from ragalign.generation.asynchronous import UnavailableError
from ragalign.generation.upstream import Upstream
from ragalign.types import Decoding, Prompt

PROMPT = Prompt(("",), np.arange(100, dtype=np.int32))
ONE = Decoding(max_tokens=50)
EVERY_S = 0.05


class ListingServer(ScriptedServer):
    """A scripted server that lists these models (name and context length), or answers with this status.

    Attributes:
        go_on: cleared, it lists nothing for the time being.
    """

    def __init__(self, *models: tuple[str, int | None], status: int = 200, **more: Any) -> None:
        self.models = models
        self.status = status
        self.go_on = threading.Event()
        self.go_on.set()
        super().__init__(lambda _: "An answer.", **more)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        def get(handler: BaseHTTPRequestHandler) -> None:
            self.go_on.wait(10)
            cards = [{"id": name, "root": f"/{name}", "max_model_len": length} for name, length in self.models]
            payload = json.dumps({"object": "list", "data": cards}).encode()
            handler.send_response(self.status)
            handler.send_header("Content-Length", str(len(payload)))
            handler.end_headers()
            handler.wfile.write(payload)

        return type("Handler", (super()._handler(),), {"do_GET": get})


def in_order(*servers: ListingServer) -> list[ListingServer]:
    """The servers in the order of the prompt's key."""
    return [servers[place] for place in ranked(affinity_key(PROMPT), [server.base_url for server in servers])]


async def answer(upstream: Upstream, decoding: Decoding = ONE, sample: int = 0, prompt: Prompt = PROMPT) -> str:
    async with aclosing(upstream.stream(prompt, decoding, sample=sample)) as deltas:
        return "".join([delta.text async for delta in deltas])


def run(upstream: Upstream, work: Callable[[], Awaitable[None]]) -> None:
    async def started() -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(upstream.close)
            await upstream.start()
            await work()

    asyncio.run(started())


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.mark.parametrize("model", ["m", None])
def test_a_server_without_the_model_is_refused_at_the_start(model: str | None) -> None:
    first, second = ListingServer(("m", None)), ListingServer(("x", None), ("y", None))
    with first, second, pytest.raises(ConfigError) as error:
        Upstream([nobody(), first.base_url, second.base_url], model=model)
    assert str(error.value) == (
        f"http://127.0.0.1:{second.port} does not serve the model 'm', but 'x', 'y'; "
        "serve 'm' there, or leave this --upstream out"
    )


@pytest.mark.parametrize(("given", "expected"), [(None, 1024), (512, 512), (4096, 1024)])
def test_the_smallest_context_length_counts(given: int | None, expected: int) -> None:
    servers = [ListingServer(("m", 2048)), ListingServer(("x", 100), ("m", 1024)), ListingServer(("m", None))]
    with ExitStack() as stack:
        urls = [stack.enter_context(server).base_url for server in servers]
        upstream = Upstream([nobody(), *urls], context_length=given)
    assert (upstream.model, upstream.root, upstream.context_length) == ("m", "/m", expected)


def test_a_server_that_lists_nothing_is_believed() -> None:
    with ListingServer() as silent, ListingServer(("m", 2048), status=404) as other:
        upstream = Upstream([silent.base_url, other.base_url], model="m")
        assert (upstream.model, upstream.root, upstream.context_length) == ("m", "m", None)
        run(upstream, lambda: until_answered(upstream))
        with pytest.raises(GenerationError, match="no upstream server reports its model"):
            Upstream([silent.base_url, other.base_url])


async def until_answered(upstream: Upstream) -> None:
    assert await answer(upstream) == "An answer."


@pytest.mark.parametrize(("models", "is_last_resort"), [((("x", 2048),), False), ((("m", 512),), True)])
def test_a_server_that_comes_back_different_gets_no_requests(
    models: tuple[tuple[str, int]], is_last_resort: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with ListingServer(("m", 1024)) as one, ListingServer(("m", 1024)) as other:
        changed, same = in_order(one, other)
        upstream = Upstream([one.base_url, other.base_url], check_every_s=EVERY_S)

        async def work() -> None:
            await answer(upstream)
            assert len(changed.received) == 1
            changed.models = models
            await until(lambda: bool(caplog.records))
            await asyncio.sleep(4 * EVERY_S)
            await answer(upstream)
            assert len(same.received) == 1
            same.status = 502
            await asyncio.sleep(4 * EVERY_S)
            assert upstream.is_ready == is_last_resort
            same.status = 200
            await asyncio.sleep(4 * EVERY_S)
            changed.models = (("m", 1024),)
            await asyncio.sleep(4 * EVERY_S)
            await answer(upstream)
            assert len(changed.received) == 2

        with caplog.at_level(logging.WARNING, "ragalign"):
            run(upstream, work)
        assert len(caplog.records) == 1, "it is said once"
        assert f"http://127.0.0.1:{changed.port} " in caplog.text


def test_a_server_whose_proxy_answers_is_not_alive() -> None:
    with ListingServer(("m", None)) as one, ListingServer(("m", None)) as other:
        first, second = in_order(one, other)
        first.status = 502
        upstream = Upstream([one.base_url, other.base_url], check_every_s=EVERY_S)

        async def work() -> None:
            await answer(upstream)
            assert (len(first.received), len(second.received)) == (0, 1)
            second.status = 503
            await until(lambda: not upstream.is_ready)
            first.status = 429
            await until(lambda: upstream.is_ready)
            await answer(upstream)
            assert len(first.received) == 1

        run(upstream, work)


def test_a_slow_server_does_not_delay_the_check_of_another() -> None:
    with ListingServer(("m", None)) as slow, ListingServer(("m", None)) as other:
        upstream = Upstream([slow.base_url, other.base_url], check_every_s=EVERY_S)
        state = upstream._servers._servers[1]

        async def work() -> None:
            slow.go_on.clear()
            await asyncio.sleep(4 * EVERY_S)
            other.status = 502
            started = time.monotonic()
            await until(lambda: not state.alive)
            assert time.monotonic() - started < 1
            slow.go_on.set()

        run(upstream, work)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("affinity", ["prefix", "none"])
def test_an_overloaded_server_is_passed_over_once(status: int, affinity: Any) -> None:
    fault = Fault("status", status)
    with ListingServer(("m", None)) as a, ListingServer(("m", None)) as b, ListingServer(("m", None)) as c:
        servers = in_order(a, b, c) if affinity == "prefix" else [a, b, c]
        upstream = Upstream([server.base_url for server in (a, b, c)], affinity=affinity)

        async def work() -> None:
            servers[0].faults.append(fault)
            assert await answer(upstream) == "An answer."
            assert [len(server.received) for server in servers] == [1, 1, 0]
            assert servers[0].received[0].body == servers[1].received[0].body
            for server in servers:
                server.received.clear()
                server.faults.append(fault)
            with pytest.raises(UnavailableError, match=rf"is overloaded \(status {status}\)"):
                await answer(upstream)
            assert sum(len(server.received) for server in servers) == 2

        run(upstream, work)
        assert [server.n_active for server in upstream._servers._servers] == [0] * 3


def test_other_failures_are_not_tried_again() -> None:
    with ListingServer(("m", None)) as one, ListingServer(("m", None)) as other:
        upstream = Upstream([one.base_url, other.base_url])

        async def work() -> None:
            for fault in (Fault("status", 500), Fault("status", 400), Fault("drop"), Fault("cut_stream")):
                in_order(one, other)[0].faults.append(fault)
                with pytest.raises(GenerationError):
                    await answer(upstream)

        run(upstream, work)
        assert sorted([len(one.received), len(other.received)]) == [0, 4]


@pytest.mark.parametrize("affinity", ["prefix", "none"])
def test_the_samples_of_a_request_share_a_server_and_all_count(affinity: Any) -> None:
    with ListingServer(("m", None), delay_s=0.3) as one, ListingServer(("m", None), delay_s=0.3) as other:
        upstream = Upstream([one.base_url, other.base_url], affinity=affinity)
        eight, again = replace(ONE, n=8), replace(PROMPT)

        async def work() -> None:
            several = [answer(upstream, eight, sample) for sample in range(8)]
            assert set(await asyncio.gather(*several, answer(upstream, prompt=again))) == {"An answer."}

        run(upstream, work)
        assert sorted([len(one.received), len(other.received)]) == [1, 8]
        assert not upstream._requests
        assert [server.n_active for server in upstream._servers._servers] == [0, 0]


@pytest.mark.parametrize("fault", ["overloaded", "gone"])
def test_samples_move_to_another_server_together(fault: str) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(ListingServer(("m", None))) for _ in range(4)]
        first, second, *_ = in_order(*servers)
        upstream = Upstream([server.base_url for server in servers], check_every_s=60)

        async def work() -> None:
            await asyncio.sleep(0.2)  # the first checks are over
            if fault == "gone":
                first._server.shutdown()
                first._server.server_close()
            first.faults.extend([Fault("status", 503)] * 4)
            several = [answer(upstream, replace(ONE, n=4), sample) for sample in range(4)]
            assert set(await asyncio.gather(*several)) == {"An answer."}

        run(upstream, work)
        assert len(second.received) == 4


@pytest.mark.parametrize("second", ["http://a:80", "http://a/", "http://A/v1", "http://a/v1/"])
def test_a_server_named_twice_is_refused(second: str) -> None:
    with pytest.raises(ConfigError, match="server http://a is named twice; name each server once"):
        Servers(["http://b", "http://a", second], {})


@pytest.mark.parametrize("url", ["ftp://a", "a:8000", "http://", "http://1.2.3.400", "http://☃.☃"])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="an upstream's URL must be http"):
        Servers([url], {})
