"""Several fronts and several completion servers: affinity, draining, and what dies under load."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fixtures.chat import ask
from fixtures.live import LiveCommand
from fixtures.scripted_server import ScriptedServer

CHAT = "/v1/chat/completions"


def post(url: str, body: Any) -> httpx.Response:
    return httpx.post(f"{url}{CHAT}", json=body, timeout=60)


def session_ids(server: ScriptedServer) -> list[str]:
    return [received.headers["x-session-id"] for received in server.received]


def test_conversations_stay_on_their_server(upstream_service: Any) -> None:
    questions = [f"Question {number}: why is the sky blue?" for number in range(12)]
    with ScriptedServer(lambda _: "An answer.") as first, ScriptedServer(lambda _: "An answer.") as second:
        servers = [first, second]
        with upstream_service(*servers) as running, upstream_service(*reversed(servers)) as other:
            for question in questions:
                later = ask(question)
                later["messages"] += [
                    {"role": "assistant", "content": "An answer."},
                    {"role": "user", "content": "Why not green?"},
                ]
                for url, body in ((running.url, ask(question)), (other.url, later), (running.url, ask(question, n=3))):
                    assert post(url, body).status_code == 200
    by_key = [set(session_ids(server)) for server in servers]
    assert not by_key[0] & by_key[1], "no conversation is on two servers, whichever front it came by"
    assert len(by_key[0] | by_key[1]) == len(questions)
    assert all(by_key), "both are used"
    assert set(Counter(key for server in servers for key in session_ids(server)).values()) == {5}


def test_without_affinity_no_session_is_named(upstream_service: Any) -> None:
    with ScriptedServer() as server, upstream_service(server, affinity="none") as running:
        assert post(running.url, ask()).status_code == 200
        assert "x-session-id" not in server.received[0].headers


def test_a_popular_beginning_overflows(upstream_service: Any) -> None:
    with (
        ScriptedServer(delay_s=0.3) as first,
        ScriptedServer(delay_s=0.3) as second,
        upstream_service(first, second) as running,
        ThreadPoolExecutor(16) as threads,
    ):
        answers = list(threads.map(lambda _: post(running.url, ask()).status_code, range(16)))
    assert answers == [200] * 16
    assert abs(first.most_in_flight - second.most_in_flight) <= 5
    assert min(len(first.received), len(second.received)) >= 5


@dataclass
class Balancer:
    """A load balancer: a request goes to the next front, and to another one if a front refuses the connection.

    Attributes:
        failed: the time, the time of asking, and what was wrong, of each request that failed.
    """

    urls: list[str]
    failed: list[tuple[float, float, str]] = field(default_factory=list)
    n_answered: int = 0

    def ask(self, number: int) -> None:
        asked, count = time.monotonic(), len(self.urls)
        for step in range(count):
            url = self.urls[(number + step) % count]
            try:
                answer = post(url, ask(f"Question {number % 40}: why?"))
            except httpx.ConnectError:
                continue
            except httpx.HTTPError as error:
                self.failed.append((time.monotonic(), asked, repr(error)))
                return
            if answer.status_code != 200:
                self.failed.append((time.monotonic(), asked, answer.text))
            self.n_answered += answer.status_code == 200
            return
        self.failed.append((time.monotonic(), asked, "no front could be reached"))


@dataclass
class Server:
    """A completion server that can die."""

    base_url: str
    die: Callable[[], None]


Start = Callable[[Sequence[Server | ScriptedServer]], list[LiveCommand]]
Servers = Callable[[str], list[Server]]


@pytest.fixture
def start_fronts(tiny_model: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts two fronts over these servers, each in a process of its own."""
    with ExitStack() as stack:

        def start(servers: Sequence[Server | ScriptedServer]) -> list[LiveCommand]:
            arguments: list[object] = ["--recipe", "zero-shot", "--also", "zero-shot", "--model", "m", "--name", "tiny"]
            arguments += ["--tokenizer", tiny_model, "--drain-delay", 5]
            arguments += [part for server in servers for part in ("--upstream", server.base_url)]
            fronts = [LiveCommand(tmp_path / f"log{number}", *arguments) for number in range(2)]
            with ThreadPoolExecutor(2) as threads:
                for front in threads.map(lambda front: front.__enter__(), fronts):
                    stack.push(front)
            return fronts

        yield start


def kill(command: LiveCommand) -> None:
    assert command.process is not None
    os.killpg(command.process.pid, signal.SIGKILL)
    command.process.wait()


@pytest.fixture
def start_servers(tiny_model: Path, tmp_path: Path) -> Iterator[Servers]:
    """Starts two servers, scripted ones or real engines in processes of their own."""
    with ExitStack() as stack:

        def start(kind: str) -> list[Server]:
            if kind == "scripted":
                scripted = [ScriptedServer(lambda _: "An answer.", delay_s=0.05) for _ in range(2)]
                for one in scripted:
                    one.__enter__()
                stack.callback(scripted[1].__exit__, None, None, None)
                return [Server(one.base_url, lambda one=one: one.__exit__(None, None, None)) for one in scripted]  # type: ignore[misc]
            pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
            given = ("--model", tiny_model, "--name", "m", "--dtype", "float32", "--recipe", "zero-shot")
            environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
            engines = [
                LiveCommand(tmp_path / f"engine{number}", *given, "--also", "zero-shot", environment=environment)
                for number in range(2)
            ]
            with ThreadPoolExecutor(2) as threads:
                for engine in threads.map(lambda engine: engine.__enter__(), engines):
                    stack.push(engine)
            return [Server(f"{engine.url}/v1", partial(kill, engine)) for engine in engines]

        yield start


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["scripted", "engines"])
def test_one_front_and_one_server_die_under_load(start_servers: Servers, start_fronts: Start, kind: str) -> None:
    servers = start_servers(kind)
    fronts = start_fronts(servers)
    for front in fronts:  # one signal to each reloads all
        assert front.process is not None
        os.kill(front.process.pid, signal.SIGHUP)
    balancer, over, deaths = Balancer([front.url for front in fronts]), threading.Event(), []

    def keep_asking(start: int) -> None:
        number = start
        while not over.is_set():
            balancer.ask(number)
            number += 8

    def dies(die: Callable[[], None]) -> None:
        begun = time.monotonic()
        die()
        deaths.append((begun, time.monotonic()))

    with ThreadPoolExecutor(8) as threads:
        askers = [threads.submit(keep_asking, start) for start in range(8)]
        time.sleep(3)
        n_before = balancer.n_answered
        dies(servers[0].die)
        time.sleep(3)
        dies(partial(kill, fronts[0]))
        time.sleep(3)
        n_left = balancer.n_answered
        time.sleep(2)
        over.set()
        for asker in askers:
            asker.result()
    assert n_before > 20
    assert balancer.n_answered > n_left, "the rest carries on"
    unexplained = [
        (asked, what)
        for ended, asked, what in balancer.failed
        if not any(asked <= dead and dying <= ended for dying, dead in deaths)
    ]
    assert not unexplained, "only requests in flight on the dead one fail"
    assert len(balancer.failed) <= 16


@pytest.mark.slow
def test_a_front_leaves_without_an_error(start_fronts: Start) -> None:
    """A load balancer takes a front that is not ready out of its list; until then the front answers."""
    with ScriptedServer(lambda _: "An answer.", delay_s=0.05) as server:
        leaving, staying = start_fronts([server])
        assert leaving.process is not None
        ready = [leaving.url, staying.url]
        over, statuses, seen = threading.Event(), [], []

        def probe() -> None:
            while not over.is_set():
                for front in (leaving, staying):
                    try:
                        answer = httpx.get(f"{front.url}/ready", timeout=5)
                        is_ready = answer.status_code == 200
                        seen.append(None if is_ready else answer.json()["error"]["code"])
                    except httpx.HTTPError:
                        is_ready = False
                    if not is_ready and front.url in ready:
                        ready.remove(front.url)
                time.sleep(0.1)

        def keep_asking() -> None:
            number = 0
            while not over.is_set():
                number += 1
                urls = list(ready)
                statuses.append(post(urls[number % len(urls)], ask(f"Question {number}")).status_code)

        with ThreadPoolExecutor(5) as threads:
            workers = [threads.submit(probe), *(threads.submit(keep_asking) for _ in range(4))]
            time.sleep(1)
            leaving.process.send_signal(signal.SIGTERM)
            assert leaving.process.wait(20) == 0
            time.sleep(0.5)
            over.set()
            for worker in workers:
                worker.result()
    assert ready == [staying.url]
    assert "draining" in seen
    assert set(statuses) == {200}
    assert "Traceback" not in leaving.log.read_text()


def test_vllms_router_keeps_what_begins_alike_together(upstream_service: Any, tmp_path: Path) -> None:
    pytest.importorskip("vllm_router", reason="needs the `dev` extra")
    with ScriptedServer(lambda _: "An answer.") as first, ScriptedServer(lambda _: "An answer.") as second:
        servers = [first, second]
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "vllm_router.launch_router", "--policy", "consistent_hash", "--worker-urls"]
        command += [server.base_url.removesuffix("/v1") for server in servers]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as router:
            try:
                until = time.monotonic() + 60
                while not _answers(f"http://127.0.0.1:{port}/v1/models"):
                    assert router.poll() is None, (tmp_path / "log").read_text()
                    assert time.monotonic() < until
                    time.sleep(0.1)
                with upstream_service(f"http://127.0.0.1:{port}") as running:
                    for number in range(12):
                        for stream in (False, True):
                            body = ask(f"Question {number}: why is the sky blue?", stream=stream)
                            assert post(running.url, body).status_code == 200
            finally:
                router.terminate()
    completions = [[one for one in server.received if "prompt" in one.body] for server in servers]
    assert sum(map(len, completions)) == 24
    assert all(isinstance(one.body["prompt"], list) for found in completions for one in found), "token ids, as sent"
    keys = [{one.headers["x-session-id"] for one in found} for found in completions]
    assert all(keys)
    assert not keys[0] & keys[1]


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
