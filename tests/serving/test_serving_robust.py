"""Who may ask, how much, how often; and what becomes of the work of clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.chat import CHAT, ask, post
from fixtures.live import LiveApp, LiveCommand
from fixtures.load import press
from fixtures.scripted_server import ScriptedServer

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.serving import Limits, ServingSettings, create_app


def figure(url: str, name: str) -> float:
    """The sum of a Prometheus figure over its labels."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def wait_for(condition: Callable[[], bool], seconds: float) -> float:
    """How long it took until `condition` held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not come to hold"
        time.sleep(0.01)
    return time.monotonic() - started


def test_beyond_the_queue_429_and_what_was_accepted_is_answered(upstream_service: Any) -> None:
    settings = ServingSettings(limits=Limits(max_running=2, max_waiting=3))
    with ScriptedServer(delay_s=0.5) as server, upstream_service(server, settings=settings) as running:
        with ThreadPoolExecutor(12) as threads:
            answers = list(threads.map(lambda n: post(running.url, ask(f"number {n}")), range(12)))
        refused = [answer for answer in answers if answer.status_code == 429]
        accepted = [answer for answer in answers if answer.status_code == 200]
        assert len(accepted) + len(refused) == 12
        assert len(accepted) >= 5
        assert len(refused) >= 3
        assert server.most_in_flight <= 2
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
        wait_for(lambda: figure(running.url, "ragalign_requests_running") == 0, 5)
        assert figure(running.url, "ragalign_requests_waiting") == 0
        assert post(running.url).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("engine", ["bridge", pytest.param("command", marks=pytest.mark.slow)])
def test_who_leaves_frees_the_engine(
    request: pytest.FixtureRequest, vllm_engine: Any, engine: str, stream: bool
) -> None:
    running = request.getfixturevalue("live" if engine == "bridge" else "command")
    with running.apart() if engine == "command" else nullcontext():
        left = figure(running.url, "ragalign_disconnects_total")
        # A quick processor writes one answer of the tiny model within a second or two, before anybody has left.
        asked = ask(max_tokens=1500, n=8, temperature=1.0, seed=1, stream=stream, model="tiny:zero-shot")
        asked |= {"ignore_eos": True}
        body = json.dumps(asked).encode()
        with socket.create_connection(("127.0.0.1", int(running.url.rsplit(":", 1)[1]))) as client:
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            client.sendall(head.encode() + body)
            if stream:
                client.settimeout(60)
                assert b"data:" in client.recv(4000) + client.recv(4000)
            wait_for(lambda: figure(running.url, "ragalign_requests_running") == 1, 30)
            time.sleep(0.3)
        took = wait_for(lambda: figure(running.url, "ragalign_requests_running") == 0, 10)
        assert took < 1.0
        wait_for(lambda: figure(running.url, "ragalign_disconnects_total") == left + 1, 5)
    if engine == "bridge":
        unfinished = vllm_engine._engine().llm_engine.get_num_unfinished_requests
        assert wait_for(lambda: unfinished() == 0, 10) < 1.0


def test_who_leaves_the_queue_gives_up_the_place(upstream_service: Any) -> None:
    settings = ServingSettings(limits=Limits(max_running=1, max_waiting=5))
    with ScriptedServer(delay_s=1.0) as server, upstream_service(server, settings=settings) as running:
        url = running.url
        first = threading.Thread(target=post, args=(url,))
        first.start()
        wait_for(lambda: figure(url, "ragalign_requests_running") == 1, 10)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}{CHAT}", json=ask("I leave"), timeout=httpx.Timeout(10, read=0.2))
        wait_for(lambda: figure(url, "ragalign_requests_waiting") == 0, 5)
        first.join()
        assert post(url, ask("I stay")).status_code == 200
        assert not any("I leave" in str(received.body) for received in server.received)
        assert len(server.received) == 2


def test_a_reload_mixes_nothing_and_loses_nothing(
    make_aligners: Any, minilm: Encoder, tmp_path: Path, upstream_service: Any
) -> None:
    def build(mark: str) -> None:
        rows = [{"instruction": f"{mark} question {n} about the sky", "response": f"{mark} answer"} for n in range(12)]
        source = tmp_path / f"{mark}.jsonl"
        source.write_text("\n".join(map(json.dumps, rows)))
        Index.build(Pool.load(source), minilm).save(tmp_path / "index")

    build("old")
    with ScriptedServer(lambda _: "fine", delay_s=0.02) as server:
        load = lambda: make_aligners(tmp_path / "index")  # noqa: E731
        aligners = load()
        with upstream_service(server, recipes=aligners, load=load) as running:
            stop, problems, seen = threading.Event(), [], []

            def keep_asking() -> None:
                while not stop.is_set():
                    answer = post(running.url, ask("about the sky", model="tiny:ica", ragalign={"explain": True}))
                    told = answer.json()
                    if answer.status_code != 200:
                        problems.append(told)
                        continue
                    texts = [piece["text"] for piece in told["ragalign"]["pieces"] if piece["kind"] == "demonstration"]
                    marks = {mark for mark in ("old", "new") for text in texts if f"{mark} question" in text}
                    seen.append((told["ragalign"]["index_generation"], tuple(marks)))

            threads = [threading.Thread(target=keep_asking) for _ in range(4)]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(seen) > 8, 30)
            build("new")
            answer = httpx.post(f"{running.url}/admin/reload")
            assert answer.json() == {
                "index_generation": 2,
                "demonstrations": {"ica": 12, "urial": 0, "zero-shot": 0},
            }
            after = len(seen)
            wait_for(lambda: len(seen) > after + 12, 30)
            stop.set()
            for thread in threads:
                thread.join()
    assert not problems
    assert set(seen) == {(1, ("old",)), (2, ("new",))}


def test_a_broken_index_leaves_the_old_one(make_aligners: Any, upstream_service: Any, tmp_path: Path) -> None:
    with ScriptedServer() as server, upstream_service(server, load=lambda: make_aligners(tmp_path)) as running:
        answer = httpx.post(f"{running.url}/admin/reload")
        assert answer.status_code == 409
        assert "the old one stays in use" in answer.json()["error"]["message"]
        assert post(running.url).status_code == 200


def test_only_this_machine_or_the_admin_may_reload(make_aligners: Any, upstream_service: Any) -> None:
    with ScriptedServer() as server:
        with upstream_service(server, load=make_aligners) as running:
            for name in ("X-Forwarded-For", "Origin"):
                answer = httpx.post(f"{running.url}/admin/reload", headers={name: "http://elsewhere.example"})
                assert answer.status_code == 403
        settings = ServingSettings(admin_key="root", api_keys=("user",))
        with upstream_service(server, load=make_aligners, settings=settings) as running:
            for key, status in (("user", 401), ("x", 401), ("root", 200)):
                headers = {"Authorization": f"Bearer {key}"}
                assert httpx.post(f"{running.url}/admin/reload", headers=headers).status_code == status


def test_logs_hold_no_prompt_unless_asked_for(
    upstream_service: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "my secret plan"
    for wanted in (False, True):
        caplog.clear()
        settings = ServingSettings(log_prompts=wanted)
        with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
            for stream in (False, True):
                post(running.url, ask(secret, stream=stream))
            post(running.url, ask(secret, temperature=9))
            post(running.url, ask(secret * 2000))
        own = [record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
        assert any(secret in message for message in own) == wanted
        assert secret not in "".join(capfd.readouterr())


def test_cors_is_off_unless_an_origin_is_named(upstream_service: Any) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    for origins, expected in (((), None), (("https://app.example",), "https://app.example")):
        settings = ServingSettings(cors_origins=origins, api_keys=("k",))
        with ScriptedServer() as server, upstream_service(server, settings=settings) as running:
            answer = httpx.options(f"{running.url}{CHAT}", headers=headers)
            assert answer.headers.get("access-control-allow-origin") == expected


def test_an_application_can_be_mounted(make_aligners: Any, vllm_engine: Any) -> None:
    from contextlib import asynccontextmanager

    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse

    inner = create_app(make_aligners(generator=vllm_engine)["zero-shot"], name="tiny")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> Any:
        async with inner.router.lifespan_context(inner):
            yield

    outer = FastAPI(lifespan=lifespan)
    outer.get("/ready", response_class=PlainTextResponse)(lambda: "yes")
    outer.mount("/align", inner)
    with LiveApp(outer) as running:
        answer = httpx.post(f"{running.url}/align{CHAT}", json=ask(), timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 12
        assert httpx.get(f"{running.url}/align/").status_code == 200


@pytest.mark.slow
def test_the_command_reloads_at_sighup_and_drains_at_sigterm(
    starter_index: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with ScriptedServer(delay_s=1.5) as server:
        arguments = (starter_index, "--upstream", server.base_url, "--model", "m", "--tokenizer", tiny_model)
        with LiveCommand(tmp_path / "log", *arguments, "--name", "tiny") as running:
            assert running.process is not None
            os.kill(running.process.pid, signal.SIGHUP)
            wait_for(lambda: httpx.get(f"{running.url}/ready").json()["index_generation"] == 2, 30)
            with ThreadPoolExecutor(4) as threads:
                answers = [threads.submit(post, running.url, ask(f"n {n}")) for n in range(4)]
                wait_for(lambda: len(server.received) == 4, 20)
                running.process.terminate()
                assert [answer.result().status_code for answer in answers] == [200] * 4
            assert running.process.wait(20) == 0
            assert "Traceback" not in running.log.read_text()


@pytest.mark.slow
def test_under_four_times_the_load_there_is_no_error_but_429(
    starter_index: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A short ``benchmarks/serving_load.py``, without an engine."""
    running_most, waiting_most = 4, 4
    limits = ("--max-running", running_most, "--max-waiting", waiting_most)
    with ScriptedServer(lambda _: "An answer.", delay_s=0.2) as server:
        arguments = (starter_index, "--upstream", server.base_url, "--model", "m", "--tokenizer", tiny_model, *limits)
        with LiveCommand(tmp_path / "log", *arguments, "--name", "tiny") as running:
            assert running.process is not None
            load = asyncio.run(
                press(
                    running.url,
                    clients=4 * (running_most + waiting_most),
                    seconds=10,
                    body=lambda number: ask(f"number {number}", model="tiny:ica"),
                    pid=running.process.pid,
                )
            )
        assert "Traceback" not in running.log.read_text()
    assert set(load.statuses) == {200, 429}
    assert load.without_retry_after == 0
    assert server.most_in_flight <= running_most
    # Little's law, with room for a busy machine; without the bound, 32 clients would wait four times as long.
    assert load.quantile_s(0.5) < 2 * (running_most + waiting_most) / load.throughput
    assert load.growth() < 1.05
