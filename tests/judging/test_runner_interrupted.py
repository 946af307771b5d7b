"""Killed, interrupted and resumed runs, with the server's log as the oracle."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.judge_server import ANSWERED, JudgeServer

DRIVER = Path(__file__).parent.parent / "fixtures" / "judge_driver.py"
N_ITEMS, CONCURRENCY = 200, 16


def start(server: JudgeServer, cache: Path) -> subprocess.Popen[str]:
    # A shell starts its background jobs deaf to Ctrl-C, and these tests may be in one.
    command = ["env", "--default-signal=INT", sys.executable, str(DRIVER)]
    command += [server.base_url, str(cache), str(N_ITEMS), str(CONCURRENCY)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def cached_texts(cache: Path) -> set[str]:
    """What the cache holds, read by SQLite alone. Every good text is unique to its question."""
    if not cache.exists():
        return set()
    connection = sqlite3.connect(cache)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = connection.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'ragalign_cache'").fetchone()[0]
        rows = connection.execute("SELECT value FROM ragalign_cache").fetchall() if tables else []
    finally:
        connection.close()
    return {json.loads(reply)["choice"]["message"]["content"] for (reply,) in rows}


def wait_until_answered(server: JudgeServer, count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(entry.completed for entry in server.log) < count and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    cache = tmp_path / "replies.sqlite"
    # Bad answers would make texts ambiguous; they are cached by the same code.
    with JudgeServer(fault_rate=0.2, faults=("500", "429", "drop", "truncated"), latency_s=0.02, seed=seed) as server:
        stored = set[str]()
        for n_kills, target in enumerate(sorted(generator.sample(range(1, N_ITEMS - 20), 4)), start=1):
            process = start(server, cache)
            wait_until_answered(server, target)
            time.sleep(generator.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kept = cached_texts(cache)
            assert stored <= kept, "a finished reply was lost"
            stored = kept
            # Everything that had been answered was stored, except what was on its way.
            assert sum(entry.completed for entry in server.log) - len(kept) <= n_kills * CONCURRENCY
            n_seen = len(server.log)
            time.sleep(0.05)  # requests of the dead process that the server has yet to read
            for entry in server.log[n_seen:]:
                assert entry.text not in stored
        n_before, process = len(server.log), start(server, cache)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        asked_last = [entry for entry in server.log[n_before:] if entry.kind in ANSWERED]
    verdicts = json.loads(out.splitlines()[-1])
    assert len(verdicts) == N_ITEMS
    # The last run asked exactly for what was missing, each question once.
    assert {entry.text for entry in asked_last} == set(verdicts.values()) - stored
    assert len(asked_last) == N_ITEMS - len(stored)
    # Nothing invented: every verdict is a text that the server gave to that question.
    given = {entry.text: entry.body["messages"][-1]["content"] for entry in server.log if entry.kind == "ok"}
    for name, text in verdicts.items():
        assert f"Question {name.split('/')[0]}?" in given[text]


def test_interrupted_by_the_user(tmp_path: Path) -> None:
    cache = tmp_path / "replies.sqlite"
    with JudgeServer(latency_s=0.05) as server:
        process = start(server, cache)
        wait_until_answered(server, 60)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode not in (0, None)
        assert "KeyboardInterrupt" in err
        assert "ExceptionGroup" not in err
        assert "never awaited" not in err
        kept = cached_texts(cache)
        assert len(kept) >= 60 - CONCURRENCY
        n_before = len(server.log)
        process = start(server, cache)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert len(server.log) - n_before == N_ITEMS - len(kept)
        assert kept <= set(json.loads(out.splitlines()[-1]).values())


def test_two_runs_share_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "replies.sqlite"
    with JudgeServer(latency_s=0.01) as server:
        processes = [start(server, cache), start(server, cache)]
        outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second
    assert cached_texts(cache) == set(first.values())
