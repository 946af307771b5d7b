"""Thousands of bad bodies, odd Host headers, broken heads and broken servers: what the service answers.

    PYTHONPATH=tests python benchmarks/serving_fuzz.py --bodies 2000 --out benchmarks/results/serving_fuzz.json

One in ten comes from schemathesis and the service's own OpenAPI schema, the others are good bodies with strange values
(huge numbers, deep nesting, lone surrogates ...) or damaged bytes. The service runs over HTTP in front of a scripted
completion server. The run fails at the first answer other than a proper one, 400, 404 or 413. Host headers must be
those of this machine; requests with a broken head get 4xx or a closed connection; and a completion server that sends
nonsense costs its own request a 502, never an answer that is not valid JSON.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from fixtures.attacks import ask_broken, try_heads, try_hosts, upstream_payloads
from fixtures.fuzz import broken_bodies, schema_bodies, send
from fixtures.live import LiveApp
from fixtures.scripted_server import ScriptedServer
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from machine import about, report

from ragalign.aligner import Aligner
from ragalign.generation.toy import build_toy_model
from ragalign.generation.upstream import Upstream
from ragalign.serving import create_app
from ragalign.tokenization import Tokenizer

SHARES = {"schema": 0.1, "broken": 0.9}
SEED = 7
HEADS, UPSTREAMS = 500, 1_000


class Errors(logging.Handler):
    """Counts what the service logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.messages.append(record.getMessage())


def fuzz(url: str, bodies: st.SearchStrategy[tuple[str, bytes]], count: int) -> Counter[int]:
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=url, timeout=60) as client:

        @seed(SEED)
        @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(bodies)
        def work(request: tuple[str, bytes]) -> None:
            statuses[send(client, *request)] += 1

        work()
    return statuses


def fuzz_upstream(url: str, server: ScriptedServer, count: int) -> Counter[int]:
    statuses: Counter[int] = Counter()

    @seed(SEED)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(upstream_payloads(), st.booleans())
    def work(payload: tuple[bytes, ...], stream: bool) -> None:
        statuses[ask_broken(url, server, payload, stream=stream)] += 1

    work()
    return statuses


def as_json(counts: Counter[int]) -> dict[str, int]:
    return {str(status): number for status, number in sorted(counts.items())}


def measure(count: int) -> dict[str, Any]:
    errors = Errors()
    logging.getLogger("ragalign.serving").addHandler(errors)
    found: dict[str, Any] = {}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ScriptedServer(lambda _: "An answer.") as server:
        tokenizer = Tokenizer.load(build_toy_model(folder, ["Why is the sky blue? Air scatters short waves."] * 4))
        aligner = Aligner.from_recipe("zero-shot", tokenizer=tokenizer, context_length=2048)
        upstream = Upstream([server.base_url], model="m", timeout_s=20, context_length=2048)
        app = create_app(aligner, generator=upstream, name="tiny")
        with LiveApp(app) as running:
            for name, bodies in (("broken", broken_bodies()), ("schema", schema_bodies(app.openapi()))):
                statuses = fuzz(running.url, bodies, round(count * SHARES[name]))
                found[name] = as_json(statuses)
                print(name, found[name], f"{time.perf_counter() - started:.0f} s", flush=True)
            hosts = try_hosts(running.url)
            assert not [status for status in hosts["bad"] if not 400 <= status < 500], hosts
            heads = try_heads(running.url, HEADS, SEED)
            assert not [status for status in heads if status >= 500], heads
            upstreams = fuzz_upstream(running.url, server, UPSTREAMS)
            print("hosts", hosts, "heads", heads, "upstreams", upstreams, flush=True)
            alive = httpx.get(f"{running.url}/ready").status_code
    return {
        "bodies": sum(sum(counts.values()) for counts in found.values()),
        "answers_by_status": found,
        "host_headers": {kind: as_json(counts) for kind, counts in hosts.items()},
        "heads": as_json(heads),
        "broken_servers": as_json(upstreams),
        "errors_logged": len(errors.messages),
        "ready_afterwards": alive == 200,
        "seconds": round(time.perf_counter() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = about("fastapi", "hypothesis", "pydantic", "schemathesis")
    result = {
        **facts,
        "command": f"PYTHONPATH=tests {facts['command']}",
        "seed": SEED,
        **measure(options.bodies),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
