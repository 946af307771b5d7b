"""`ragalign utility` from an index to an encoder that `ragalign index` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command

from ragalign_cli import console


def test_score_train_and_index(
    ragalign: Command, starter_index: Path, tiny_model: Path, minilm_folder: Path, tmp_path: Path
) -> None:
    queries = tmp_path / "q.jsonl"
    rows = [
        {"id": "a", "instruction": "Name a river.", "reference": "The Nile is a river."},
        {"id": "b", "instruction": "Count to three.", "output": "One, two, three."},
        {"id": "c", "instruction": "Say hello.", "response": "Hello!"},
        {"id": "d", "instruction": "Say goodbye.", "reference": "Goodbye!"},
        {"id": "e", "instruction": "What is this?"},
    ]
    queries.write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = (
        "utility", "score", starter_index, "--model", tiny_model, "--backend", "transformers", "--queries", queries,
        "--candidates", "4", "--out",
    )  # fmt: skip
    run = ragalign(*score, tmp_path / "gains.jsonl")
    assert run.returncode == 0, run.stderr
    assert "no reference answer, left out: 1 of 5 questions" in run.stderr
    assert "16 pairs of question and candidate, 16 to measure" in run.stderr
    assert "near" in run.stdout
    gains = [json.loads(line) for line in (tmp_path / "gains.jsonl").read_text().splitlines()]
    assert [set(row) for row in gains] == [{"id", "candidate", "gain", "n_tokens"}] * 16
    again = ragalign(*score, tmp_path / "gains.jsonl", "--json")
    assert "starting the engine" not in again.stderr
    assert json.loads(again.stdout)["n_pairs"] == 16
    trained = ragalign(
        "utility", "train", tmp_path / "gains.jsonl", "--encoder", minilm_folder, "--out", tmp_path / "encoder",
        "--epochs", "1", "--held-out", "0.25",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "rank correlation" in trained.stdout
    (tmp_path / "pool.jsonl").write_text('{"instruction": "Name a lake.", "response": "Como."}\n')
    built = ragalign(
        "index", "--pool", tmp_path / "pool.jsonl", "--encoder", tmp_path / "encoder", "--out", tmp_path / "index"
    )
    assert built.returncode == 0, built.stderr
    manifest = json.loads((tmp_path / "index" / "manifest.json").read_text())
    assert manifest["encoder"]["id"] == str(tmp_path / "encoder")


def test_the_pools_own_pairs_are_the_questions(
    ragalign: Command, starter_index: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = ragalign(
        "utility", "score", starter_index, "--model", tiny_model, "--backend", "transformers", "--first", "2",
        "--candidates", "2", "--max-reference-tokens", "3", "--out", tmp_path / "gains",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in (tmp_path / "gains" / "gains.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(row["n_tokens"] == 3 and row["id"] != row["candidate"] for row in rows)


def test_an_interruption_keeps_the_gains(
    ragalign: Command, starter_index: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragalign.utility.scoring import GainRun

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GainRun, "run", interrupt)
    run = ragalign(
        "utility", "score", starter_index, "--model", tiny_model, "--backend", "transformers", "--first", "1", "--out",
        tmp_path / "gains",
    )  # fmt: skip
    assert run.returncode == console.EXIT_INTERRUPTED
    assert "run the same command again" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "nosuch", "--model", "MODEL", "--out", "OUT"), "nosuch"),
        (("score", "INDEX", "--model", "nosuch", "--out", "OUT"), "nosuch"),
        (("score", "INDEX", "--model", "MODEL", "--out", "OUT", "--candidates", "0"), "candidates"),
        (("score", "INDEX", "--model", "MODEL", "--out", "OUT", "--recipe", "nosuch"), "no recipe 'nosuch'"),
        (
            ("score", "INDEX", "--model", "MODEL", "--out", "OUT", "--queries", "QUERIES"),
            "no question has a reference answer",
        ),
        (
            ("score", "INDEX", "--model", "MODEL", "--out", "OUT", "--backend", "http://localhost:9/v1"),
            "use vllm or transformers",
        ),
        (("train", "nosuch", "--out", "OUT"), "no measured gains"),
        (("train", "nosuch", "--out", "OUT", "--text", "answers"), "text must be instruction or both"),
        (("train", "nosuch", "--out", "OUT", "--held-out", "1"), "held_out must be between 0 and 1"),
    ],
)
def test_wrong_options_get_one_line(
    ragalign: Command,
    starter_index: Path,
    tiny_model: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (tmp_path / "q.jsonl").write_text('{"instruction": "Why?"}\n')
    named = {"INDEX": starter_index, "MODEL": tiny_model, "OUT": tmp_path / "out", "QUERIES": tmp_path / "q.jsonl"}
    run = ragalign("utility", *(named.get(argument, argument) for argument in arguments))
    assert run.returncode in (1, 2)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
