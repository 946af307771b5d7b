"""Clusters that are not there, and nodes that go away; each needs a process or a cluster of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ragalign.errors import ConfigError


def test_no_cluster_where_one_is_named() -> None:
    """In a process of its own, since this one is connected."""
    code = "from ragalign_cli.main import main; main()"
    command = [sys.executable, "-c", code, "generate", "--recipe", "zero-shot", "--model", "m", "--backend"]
    command += ["transformers", "--queries", "-", "--out", "a.jsonl", "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, input="{}")
    assert done.returncode == 2
    assert "give --ray local, auto or an address" in " ".join(done.stderr.split())


@pytest.mark.parametrize("from_environment", [False, True])
@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:1", "nowhere", "127.0.0.1:99999", "127.0.0.1:0", ":6379", "a..b:6379"),
        *("ray://127.0.0.1:10001", "http://127.0.0.1:8265"),  # Ray Client, and Ray's jobs
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_once(
    address: str, from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the `ray` extra")
    from ragalign.executors.cluster import _init

    if from_environment:
        monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(ConfigError, match="Ray cluster") as refused:
        _init(ray, "auto" if from_environment else address)
    assert address in str(refused.value)
    assert ("from RAY_ADDRESS" in str(refused.value)) == from_environment
    assert ("Ray Client" in str(refused.value)) == ("//" in address)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_node_that_goes_away_costs_only_its_unfinished_prompts(tiny_model: Path) -> None:
    script = Path(__file__).with_name("lost_node.py")
    run = subprocess.run([sys.executable, script, tiny_model], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["counts"] == [[position, 1] for position in range(40)]
    assert len(found["before"]) == 2
    assert len(found["after"]) == 1
    assert found["after"][0] in found["before"]
    # A worker without a place is not waited for, and one that no node can hold is refused.
    assert found["reset_s"] < 60
    assert "1 worker needs 2 CPUs, but it has 2 CPUs" in found["refused"]
