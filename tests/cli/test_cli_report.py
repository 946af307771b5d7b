"""`ragalign report`, as a script and as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command, repeated
from fixtures.judge_server import JudgeServer

N = 30


@pytest.fixture
def judged(ragalign: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `ragalign judge run` wrote, with a judge who misbehaves now and then, beside its answers."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    rows = [
        {"id": f"q{i}", "instruction": f"Question {i}?", "response": f"Answer {i}.", "demonstrations": [f"d{i}"]}
        for i in range(N)
    ]
    (tmp_path / "ours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    outputs = [{"instruction": f"Question {i}?", "output": "Another.", "generator": "davinci"} for i in range(N)]
    (tmp_path / "theirs.json").write_text(json.dumps(outputs), encoding="utf-8")
    with JudgeServer(fault_rate=0.3, hang_s=0.3, seed=5) as server:
        done = ragalign(
            "judge", "run", "--protocol", "ica", "--answers", tmp_path / "ours.jsonl",
            "--baseline", tmp_path / "theirs.json", "--judge", f"judge@{server.base_url}", "--both-orders",
            "--timeout", 0.25, "--out", tmp_path / "judged",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return tmp_path / "judged"


def test_a_judging_run_becomes_a_page_with_its_texts(ragalign: Command, judged: Path, tmp_path: Path) -> None:
    page = tmp_path / "out" / "report.html"
    completions = [tmp_path / "ours.jsonl", tmp_path / "theirs.json"]
    done = ragalign("report", judged, *repeated("--answers", completions), "--out", page, "--title", "A & B", "--json")
    assert done.returncode == 0, done.stderr
    assert f"-> {page}" in done.stderr
    report = json.loads(done.stdout)
    (comparison,) = report["comparisons"]
    (model,) = comparison["models"]
    verdicts = [json.loads(line) for line in (judged / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    unscored = {row["item_id"] for row in verdicts if row["reason"] is not None}
    assert (report["title"], report["n"], report["n_unscored"]) == ("A & B", N - len(unscored), len(unscored))
    assert (model["protocol"], model["model"], model["n"]) == ("ica", "ours", N - len(unscored))
    assert model["common"]["outcomes"]["preference"]["win"]["value"] == pytest.approx(model["win_rate"])
    assert model["common"]["position"]["consistency"]["n"] == N - len(unscored)
    assert model["common"]["lengths"]["n_words"]["value"] == 2
    text = page.read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in text
    data = json.loads(text[text.index('id="data">') + len('id="data">') :].split("</script>")[0])
    assert {data["texts"][row["a"][0]] for row in data["rows"]} == {f"Answer {i}." for i in range(N)}
    assert {data["texts"][row["b"][0]] for row in data["rows"]} == {"Another."}
    assert data["rows"][0]["d"] == ["d0"]


def test_people_get_an_aligned_table(ragalign: Command, shared_data: Path) -> None:
    files = sorted((shared_data / "ica").glob("*_vs_davinci003_autoeval.jsonl"))
    done = ragalign("report", *files, columns=100)
    assert done.returncode == 0
    lines = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert lines["answers"].split() == ["answers", "1,500", "1,500", "1,500"]
    assert "78.4 (" in lines["win, %"]
    assert "62.9 (" in lines["win, %"]
    assert "11.4 (" in lines["win, %"]
    assert len({len(lines[name].rstrip()) for name in ("answers", "Mean preference, %", "win, %")}) == 1
    assert "Differences on the same prompts" in done.stdout
    assert "+15.6" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_upstreams_files_of_several_protocols_make_one_report(ragalign: Command, shared_data: Path) -> None:
    done = ragalign(
        "report",
        shared_data / "mt_bench/judgment_gpt-4_single_medusa.jsonl",
        shared_data / "just_eval/safety/gpt-4-0613.score_safety.chatgpt.json",
        "--queries",
        shared_data / "mt_bench/question.jsonl",
        "--json",
    )
    report = json.loads(done.stdout)
    assert [one["protocol"] for one in report["comparisons"]] == ["mt-bench", "just-eval"]
    assert len(report["comparisons"][0]["models"]) == 3
    assert report["comparisons"][0]["models"][0]["common"]["categories"]["math"]["n"] == 20
    assert report["comparisons"][1]["models"][0]["safety"] == pytest.approx(4.97)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("missing.jsonl",), 1, "missing.jsonl: cannot be read"),
        (("queries.jsonl",), 1, "cannot detect the protocol"),
        (("empty.jsonl",), 1, "is empty"),
        (("verdicts.jsonl", "--protocol", "vibes"), 2, "unknown protocol 'vibes'"),
        (("verdicts.jsonl", "--protocol", "ica"), 2, "has verdicts of the protocol mt-bench, not ica"),
        (("verdicts.jsonl", "--index", "nowhere"), 1, "nowhere"),
        (("verdicts.jsonl", "--answers", "queries.jsonl"), 1, "not an answer"),
        (("verdicts.jsonl", "--out", "verdicts.jsonl/report.html"), 2, "is not a folder"),
        ((), 2, "missing argument"),
    ],
)
def test_bad_input_is_told_in_one_line(
    ragalign: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"id": "1/0", "item_id": "1", "protocol": "mt-bench", "judge": "j", "model": "m", "scores": {"score": 5.0}}
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (tmp_path / "queries.jsonl").write_text('{"id": "1", "instruction": "Hello?"}\n', encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    done = ragalign("report", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1


def test_the_help_has_examples(ragalign: Command) -> None:
    text = ragalign("report", "--help").stdout
    assert "Examples:" in text
    assert "--out report.html" in text
