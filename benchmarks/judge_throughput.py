"""1,000 judgements, 64 in flight, 200 ms each: wall time against what the latency alone takes.

    python benchmarks/judge_throughput.py --out benchmarks/results/judge_throughput.json

The scripted judge of the tests answers from a process of its own, once flawlessly and once on a bad night on which
30 % of its replies are failures or bad answers.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import report

from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import Judge
from ragalign.judging.registry import make_protocol
from ragalign.judging.requests import Answer, Item
from ragalign.judging.retries import RetryPolicy
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import RunOptions

SERVER = Path(__file__).parent.parent / "tests" / "fixtures" / "judge_server.py"
N_ITEMS, CONCURRENCY, LATENCY_S, REPEATS = 1000, 64, 0.2, 5
IDEAL_S = N_ITEMS / CONCURRENCY * LATENCY_S


def measure(fault_rate: float, folder: Path) -> dict[str, Any]:
    port_file = folder / f"port-{fault_rate}"
    command = [sys.executable, str(SERVER), "--port-file", str(port_file), "--latency", str(LATENCY_S)]
    command += ["--fault-rate", str(fault_rate), "--hang", "2"]
    server = subprocess.Popen(command)
    runs = []
    try:
        while not port_file.exists():
            time.sleep(0.05)
        judge = Judge("judge", f"http://127.0.0.1:{port_file.read_text()}/v1")
        options = RunOptions(concurrency=CONCURRENCY, timeout_s=1.0, retry=RetryPolicy(base_s=0.05))
        for repeat in range(REPEATS):
            # Other words each time, or the server would answer the second night as the tail of the first.
            items = [
                Item(
                    str(i),
                    (f"Question {i} of run {repeat}?",),
                    Answer("ours", ("An answer of some length. " * 40,)),
                    Answer("theirs", ("Another answer. " * 60,)),
                )
                for i in range(N_ITEMS)
            ]
            with ReplyCache(folder / f"replies-{fault_rate}-{repeat}.sqlite") as cache:
                wall, cpu = time.perf_counter(), time.process_time()
                done = run_judge(make_protocol("ica"), items, [judge], cache=cache, options=options)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            runs.append(
                {
                    "wall_s": round(wall, 3),
                    "cpu_s": round(cpu, 3),
                    "times_ideal": round(wall / IDEAL_S, 3),
                    "n_requests": done.spending["judge"].n_requests,
                    "n_scored": sum(verdict.is_scored for verdict in done.verdicts),
                    "n_unscored": sum(not verdict.is_scored for verdict in done.verdicts),
                    "n_unanswered": done.n_unanswered,
                }
            )
    finally:
        server.terminate()
        server.wait()
    return {"fault_rate": fault_rate, "best_times_ideal": min(run["times_ideal"] for run in runs), "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = [measure(fault_rate, Path(folder)) for fault_rate in (0.0, 0.3)]
    result = {
        "command": "python " + " ".join(sys.argv),
        "n_judgements": N_ITEMS,
        "concurrency": CONCURRENCY,
        "latency_s": LATENCY_S,
        "ideal_s": IDEAL_S,
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "httpx": version("httpx"),
        "measured": measured,
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
