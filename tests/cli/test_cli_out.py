"""Output paths are checked before any work: whatever else is wrong, a bad `--out` is refused first."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.command import Command, Run

FILES = (
    ("pool", "convert", "nowhere.jsonl"),
    ("pool", "dedupe", "nowhere.jsonl"),
    ("pool", "score", "nowhere.jsonl", "--by", "length"),
    ("pool", "select", "nowhere.jsonl", "--by", "length", "--top", "1"),
    ("plan", "nowhere", "--queries", "nowhere.jsonl", "--tokenizer", "nowhere"),
    ("report", "nowhere"),
)
FOLDERS = (
    ("index", "--pool", "nowhere.jsonl"),
    ("judge", "run", "nowhere.jsonl", "--protocol", "mt-bench", "--judge", "gpt-4"),
)


@pytest.mark.parametrize("arguments", FILES, ids=" ".join)
def test_a_file_is_checked_first(ragalign: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    _refused(ragalign(*arguments, "--out", folder), "is a folder; give the name of a file")
    _refused(ragalign(*arguments, "--out", tmp_path / "notes" / "out.jsonl"), f"{tmp_path / 'notes'} is not a folder")
    assert (tmp_path / "notes").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("arguments", FOLDERS, ids=" ".join)
def test_a_folder_is_checked_first(ragalign: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    _refused(ragalign(*arguments, "--out", tmp_path / "notes"), "is a file; give the name of a folder")
    _refused(ragalign(*arguments, "--out", tmp_path / "notes" / "out"), f"{tmp_path / 'notes'} is not a folder")
    assert (tmp_path / "notes").read_text(encoding="utf-8") == "mine"


def test_a_pool_creates_its_folder(ragalign: Command, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"instruction": "Hi", "output": "Hello"}\n', encoding="utf-8")
    done = ragalign("pool", "convert", pool, "--out", tmp_path / "new" / "pool.parquet")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "pool.parquet").is_file()


def _refused(run: Run, message: str) -> None:
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
