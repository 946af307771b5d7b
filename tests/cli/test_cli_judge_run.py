"""`ragalign judge run` against a scripted judge, as a script meets it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.judge_server import BAD_ANSWERS, JudgeServer

from ragalign.judging.output import read_verdicts
from ragalign.judging.registry import PROTOCOLS

COMMAND = str(Path(sys.executable).with_name("ragalign"))
KEY = "sk-proj-Zq81xx_SECRET-77"
N = 40


@pytest.fixture
def answers(tmp_path: Path) -> list[str]:
    """Options that name answers as `ragalign generate` writes them, and a baseline in AlpacaEval's form."""
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.json"
    rows = [{"id": f"q{i}", "instruction": f"Question {i}?", "response": f"Our answer {i}."} for i in range(N)]
    ours.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = [{"instruction": f"Question {i}?", "output": "Another answer.", "generator": "davinci"} for i in range(N)]
    theirs.write_text(json.dumps(outputs))
    return ["--answers", str(ours), "--baseline", str(theirs)]


def ragalign(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True, text=True, timeout=120, env={**clean_environment(), **environment},
    )  # fmt: skip


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}


def judge_run(answers: list[str], server: JudgeServer, out: Path, *more: str, **environment: str) -> Any:
    return ragalign(
        "judge", "run", "--protocol", "ica", *answers, "--judge", f"judge@{server.base_url}", "--out", str(out), *more,
        **environment,
    )  # fmt: skip


def test_a_run_writes_verdicts_and_upstreams_file(tmp_path: Path, answers: list[str]) -> None:
    out = tmp_path / "judged"
    with JudgeServer(fault_rate=0.3, hang_s=0.5, seed=5) as server:
        done = judge_run(answers, server, out, "--json", "--timeout", "0.4", OPENAI_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        n_bad = sum(entry.kind in BAD_ANSWERS for entry in server.log)
        again = judge_run(answers, server, out, "--json")
        n_asked = len(server.log)
        assert sum(entry.kind in (*BAD_ANSWERS, "ok") for entry in server.log) == N
    result = json.loads(done.stdout)
    assert (result["n"], result["n_unscored"], result["n_unanswered"]) == (N - n_bad, n_bad, 0)
    assert result["judges"]["judge"]["n_requests"] == n_asked
    assert result["judges"]["judge"]["cost"] is None
    assert "unknown for judge" in done.stderr
    verdicts = read_verdicts(out / "verdicts.jsonl")
    assert [verdict.item_id for verdict in verdicts] == [f"q{i}" for i in range(N)]
    assert sum(verdict.is_scored for verdict in verdicts) == N - n_bad
    [figures] = result["figures"]
    assert figures["win"] == sum(verdict.preference == 1 for verdict in verdicts)
    assert figures["intervals"]["win_rate"]["n"] == N - n_bad

    # The rerun asks nothing and finds the same.
    assert json.loads(again.stdout)["figures"] == result["figures"]
    assert json.loads(again.stdout)["judges"]["judge"]["n_cached"] == N
    # The key was used, and is nowhere.
    texts = [done.stdout, done.stderr, *(path.read_text("latin-1") for path in out.rglob("*") if path.is_file())]
    assert not any("SECRET" in text for text in texts)
    # Cost is per verdict too, and unknown is not 0.
    assert json.loads((out / "verdicts.jsonl").read_text().splitlines()[0])["cost"] is None


def test_its_files_are_read_by_aggregate(tmp_path: Path, answers: list[str]) -> None:
    out = tmp_path / "judged"
    with JudgeServer() as server:
        done = judge_run(answers, server, out, "--json")
        run = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    path = out / "judge" / "ours_vs_davinci_autoeval.jsonl"
    assert str(path) in run["files"]
    aggregated = ragalign("judge", "aggregate", "--protocol", "ica", str(path), "--json")
    assert aggregated.returncode == 0, aggregated.stderr
    figures = json.loads(aggregated.stdout)
    for name in ("model", "baseline", "n", "win", "draw", "lose"):
        assert figures[name] == run["figures"][0][name]


def test_budget_and_resumption(tmp_path: Path, answers: list[str]) -> None:
    out = tmp_path / "judged"
    with JudgeServer() as server:
        first = judge_run(answers, server, out, "--max-requests", "15", "--json")
        assert first.returncode == 1
        assert len(server.log) == 15
        result = json.loads(first.stdout)
        assert result["reasons"] == {"budget: the limit of 15 requests is reached": N - 15}
        assert "Traceback" not in first.stderr
        second = judge_run(answers, server, out)
        assert second.returncode == 0
        assert len(server.log) == N
        assert "win_rate" in second.stdout


def test_max_cost_needs_a_price_that_the_user_can_give(tmp_path: Path, answers: list[str]) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text("[models.judge]\ninput = 1000.0\noutput = 1000.0\n")
    with JudgeServer() as server:
        refused = judge_run(answers, server, tmp_path / "a", "--max-cost", "3")
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: the price of judge is unknown")
        assert server.log == []
        done = judge_run(answers, server, tmp_path / "b", "--max-cost", "6", "--prices", str(prices), "--json")
        assert done.returncode == 1
        cost = json.loads(done.stdout)["judges"]["judge"]["cost"]
        assert 0 < cost <= 6
        costs = [json.loads(line)["cost"] for line in (tmp_path / "b" / "verdicts.jsonl").read_text().splitlines()]
        assert sum(one for one in costs if one) == pytest.approx(cost)


def test_dry_run_asks_and_writes_nothing(tmp_path: Path, answers: list[str]) -> None:
    arguments = ["judge", "run", "--protocol", "ica", *answers, "--judge", "gpt-4-0613", "--out", str(tmp_path / "x")]
    done = ragalign(*arguments, "--dry-run", "--both-orders", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["n_requests"], plan["n_cached"]) == (2 * N, 0)
    assert 0 < plan["cost_low"] < plan["cost_high"]
    assert plan["cost_high"] == pytest.approx(plan["cost_low"] + 2 * N * 500 * 60 / 1e6)
    assert not (tmp_path / "x").exists()
    shown = ragalign(*arguments, "--dry-run")
    assert "gpt-4-0613" in shown.stdout
    # Without a key, the real run stops before it starts.
    refused = ragalign(*arguments)
    assert refused.returncode == 2
    assert "OPENAI_API_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_several_judges_with_their_own_keys(tmp_path: Path, answers: list[str]) -> None:
    with JudgeServer() as server:
        arguments = ["--judge", f"b@{server.base_url}", "--key-env", "KEY_A", "--key-env", "KEY_B"]
        done = judge_run(answers, server, tmp_path / "j", *arguments, KEY_A="key-of-a-1", KEY_B="key-of-b-2")
        assert done.returncode == 0, done.stderr
        sent = {entry.body["model"]: entry.authorization for entry in server.log}
    assert sent == {"judge": "Bearer key-of-a-1", "b": "Bearer key-of-b-2"}
    assert (tmp_path / "j" / "judge").is_dir()
    assert (tmp_path / "j" / "b").is_dir()


def test_ctrl_c_keeps_what_was_answered(tmp_path: Path, answers: list[str]) -> None:
    out = tmp_path / "judged"
    with JudgeServer(latency_s=0.1) as server:
        # A shell starts its background jobs deaf to Ctrl-C, and this test may be in one.
        command = ["env", "--default-signal=INT", COMMAND, "judge", "run", "--protocol", "ica", *answers]
        command += ["--judge", f"judge@{server.base_url}", "--out", str(out), "--concurrency", "4"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environment())
        deadline = time.monotonic() + 60
        while sum(entry.completed for entry in server.log) < 12 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130, err
        assert "run the same command again to continue" in err
        assert "Traceback" not in err
        n_before = len(server.log)
        done = judge_run(answers, server, out, "--json")
    assert done.returncode == 0
    n_cached = json.loads(done.stdout)["judges"]["judge"]["n_cached"]
    assert n_cached >= 8
    assert len(server.log) - n_before == N - n_cached


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--protocol", "nonsense", "--judge", "j@http://127.0.0.1:9"], "nonsense"),
        (["--protocol", "mt-bench", "--judge", "j@http://127.0.0.1:9", "--both-orders"], "both_orders"),
        (["--protocol", "ica", "--judge", "j@http://u:pa55word@127.0.0.1:9"], "user"),
        (["--protocol", "ica", "--judge", "j@http://127.0.0.1:9", "--concurrency", "0"], "concurrency"),
        (["--protocol", "ica", "--judge", "j@http://127.0.0.1:9", "--judge", "j@http://127.0.0.1:8"], "two judges"),
        (["--protocol", "ica", "--judge", "j@http://127.0.0.1:9", "--prices", "missing.toml"], "missing.toml"),
        (["--protocol", "ica", "--judge", "j", "--key-env", "A", "--key-env", "B"], "--key-env"),
    ],
)
def test_wrong_options_are_one_line(tmp_path: Path, answers: list[str], arguments: list[str], words: str) -> None:
    done = ragalign("judge", "run", *answers, *arguments, "--out", str(tmp_path / "x"))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "pa55word" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("kind", ["400", "refusal", "empty"])
def test_nothing_scored_says_so_and_fails(tmp_path: Path, answers: list[str], kind: str) -> None:
    out = tmp_path / "judged"
    with JudgeServer(script=lambda *_: kind) as server:
        shown = judge_run(answers, server, out)
        done = judge_run(answers, server, out, "--json")
    for run in (shown, done):
        assert run.returncode == 1
        assert f"nothing was scored; {N} of {N}: " in run.stderr
        assert not re.search(r"\bnan\b", run.stdout + run.stderr, re.IGNORECASE)
    [figures] = json.loads(done.stdout, parse_constant=pytest.fail)["figures"]
    assert figures["n"] == 0
    assert figures["win_rate"] is None
    assert f"ours: {N} unscored: " in shown.stderr
    report = ragalign("report", str(out), "--out", str(tmp_path / "page.html"))
    assert report.returncode == 1
    assert f"nothing was scored; {N} of {N}: " in report.stderr
    assert not re.search(r"\bnan\b", report.stdout + report.stderr, re.IGNORECASE)
    assert (tmp_path / "page.html").exists()


def test_a_server_that_wants_another_parameter_is_understood(tmp_path: Path, answers: list[str]) -> None:
    def script(body: dict[str, Any], _count: int) -> str:
        return "wants_completion_tokens" if "max_tokens" in body else "ok"

    with JudgeServer(script=script) as server:
        done = judge_run(answers, server, tmp_path / "learnt")
        n_refused = sum(entry.kind != "ok" for entry in server.log)
        given = judge_run(answers, server, tmp_path / "given", "--token-limit", "max_completion_tokens")
        assert sum(entry.kind != "ok" for entry in server.log) == n_refused
    assert (done.returncode, given.returncode) == (0, 0), done.stderr
    assert "judge takes max_completion_tokens instead of max_tokens" in done.stderr
    assert f"{N} of {N} verdicts scored" in done.stderr


def test_a_second_run_of_the_folder_asks_nothing(tmp_path: Path, answers: list[str]) -> None:
    out = tmp_path / "judged"
    with JudgeServer(latency_s=0.3) as server:
        command = [COMMAND, "judge", "run", "--protocol", "ica", *answers, "--judge", f"judge@{server.base_url}"]
        first = subprocess.Popen(
            [*command, "--out", str(out), "--concurrency", "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not server.log and time.monotonic() < deadline:
            time.sleep(0.02)
        second = judge_run(answers, server, out)
        assert first.poll() is None, "the first run ended too early to show anything"
        assert second.returncode == 1
        assert len(second.stderr.splitlines()) == 1
        assert f"another process is using {out}" in second.stderr
        _, errors = first.communicate(timeout=240)
        assert first.returncode == 0, errors
        assert len(server.log) == N, "every question was paid for once"


def test_another_protocol_needs_another_folder(tmp_path: Path, answers: list[str]) -> None:
    out = tmp_path / "judged"
    with JudgeServer() as server:
        assert judge_run(answers, server, out).returncode == 0
        before = (out / "verdicts.jsonl").read_bytes()
        other = ["judge", "run", "--protocol", "alpaca-eval-1", *answers, "--judge", f"judge@{server.base_url}"]
        refused = ragalign(*other, "--out", str(out))
    assert refused.returncode == 2
    assert 'protocol was "ica" and is "alpaca-eval-1"' in refused.stderr
    assert (out / "verdicts.jsonl").read_bytes() == before
    assert len(server.log) == N


@pytest.mark.parametrize("protocol", [name for name in PROTOCOLS if name not in ("ifeval", "ifbench")])
def test_every_protocol_can_be_run(tmp_path: Path, protocol: str) -> None:
    judge = "reward:./model" if protocol.startswith("reward") else "judge@http://localhost:1"
    (tmp_path / "model").mkdir()
    row = {"id": "q", "instruction": "Name a river.", "response": "The Nile.", "category": "writing"}
    for name in ("ours", "theirs"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    command = ("judge", "run", "--protocol", protocol, "--answers", "ours.jsonl", "--baseline", "theirs.jsonl")
    done = subprocess.run(
        [COMMAND, *command, "--judge", judge, "--out", "judged", "--dry-run", "--json"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_verdicts"] >= 1
