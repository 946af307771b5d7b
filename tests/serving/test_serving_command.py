"""The command `ragalign serve`: what it refuses, and a SIGHUP while it starts."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from fixtures.chat import post
from fixtures.command import Command
from fixtures.live import LiveCommand
from fixtures.scripted_server import ScriptedServer

ZERO_SHOT = ("--recipe", "zero-shot", "--also", "zero-shot")


class LateServer(ScriptedServer):
    """A scripted server that does not list its models until it may.

    Attributes:
        asked: set when it is asked for its models.
        may: set when it may list them.
    """

    def __init__(self) -> None:
        self.asked, self.may = threading.Event(), threading.Event()
        super().__init__(lambda _: "An answer.")

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        base = super()._handler()

        def get(handler: BaseHTTPRequestHandler) -> None:
            self.asked.set()
            self.may.wait(60)
            base.do_GET(handler)  # type: ignore[attr-defined]

        return type("Handler", (base,), {"do_GET": get})


def test_a_hangup_during_the_start_becomes_a_reload(tiny_model: Path, tmp_path: Path) -> None:
    with LateServer() as server, ThreadPoolExecutor(1) as threads:
        arguments = ("--upstream", server.base_url, "--model", "m", "--tokenizer", tiny_model, "--name", "tiny")
        running = LiveCommand(tmp_path / "log", *ZERO_SHOT, *arguments)
        started = threads.submit(running.__enter__)
        try:
            assert server.asked.wait(60)
            assert running.process is not None
            for _ in range(3):
                os.kill(running.process.pid, signal.SIGHUP)
        finally:
            server.may.set()
        started.result()
        try:
            until = time.monotonic() + 30
            while httpx.get(f"{running.url}/ready").json()["index_generation"] != 2:
                assert time.monotonic() < until
                time.sleep(0.1)
            assert post(running.url).status_code == 200
        finally:
            running.__exit__(None, None, None)
        assert running.process.returncode == 0, running.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "m", "--affinity", "prefix"), "--affinity only applies to --upstream servers: add --upstream"),
        (("--model", "m", "--affinity", "none"), "--affinity only applies to --upstream servers: add --upstream"),
        (("--upstream", "http://a:1", "--upstream", "http://a:1/v1"), "the upstream server http://a:1 is named twice"),
        (("--upstream", "http://a:1", "--dtype", "float32"), "are for an engine of this process, not --upstream"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_fit_get_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    before = signal.getsignal(signal.SIGHUP)
    run = Command(monkeypatch, capsys)("serve", *ZERO_SHOT, "--port", 0, *arguments, columns=300)
    assert run.returncode == 2
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
    assert signal.getsignal(signal.SIGHUP) is before
