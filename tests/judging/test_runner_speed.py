"""1,000 judgements with 64 in flight at 200 ms each, against the time that the latency alone takes.

Within 1.3 times of it is what `benchmarks/judge_throughput.py` shows on a machine of its own; here other work may take
most of the processor, and three times still tells concurrent requests from queueing ones.
"""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import Judge
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.requests import Answer, Item
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import RunOptions

SERVER = Path(__file__).parent.parent / "fixtures" / "judge_server.py"
N_ITEMS, CONCURRENCY, LATENCY_S = 1000, 64, 0.2
BOUND_S = 3 * N_ITEMS / CONCURRENCY * LATENCY_S


def test_throughput_is_close_to_ideal(tmp_path: Path) -> None:
    items = [
        Item(str(i), (f"Question {i}?",), Answer("ours", ("An answer. " * 80,)), Answer("theirs", ("Another. " * 80,)))
        for i in range(N_ITEMS)
    ]
    port_file = tmp_path / "port"
    # A process of its own, so that the server's work is not counted as ours.
    command = [sys.executable, str(SERVER), "--port-file", str(port_file), "--latency", str(LATENCY_S)]
    server = subprocess.Popen(command)
    try:
        while not port_file.exists():
            assert server.poll() is None
            time.sleep(0.05)
        judge = Judge("judge", f"http://127.0.0.1:{port_file.read_text()}/v1")
        best_s = math.inf
        # Other work on the machine can spoil any one run; the fastest shows what the code can do.
        for attempt in range(3):
            with ReplyCache(tmp_path / f"replies-{attempt}.sqlite") as cache:
                started = time.perf_counter()
                run = run_judge(Ica(), items, [judge], cache=cache, options=RunOptions(concurrency=CONCURRENCY))
                best_s = min(best_s, time.perf_counter() - started)
            assert all(verdict.is_scored for verdict in run.verdicts)
            if best_s <= BOUND_S:
                break
    finally:
        server.terminate()
        server.wait()
    assert best_s <= BOUND_S
