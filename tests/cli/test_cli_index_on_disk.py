"""`ragalign index --on-disk`: built from files one after another, then searched, packed and answered from by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command

from ragalign.pool import Pool
from ragalign.recipes import data_folder

STARTER = data_folder() / "starter.jsonl"


@pytest.fixture
def folder(ragalign: Command, tmp_path: Path) -> Path:
    pool = Pool.load(STARTER)
    pool[:100].save(tmp_path / "first.parquet")
    pool[100:].save(tmp_path / "rest.jsonl")
    out = tmp_path / "index"
    run = ragalign(
        "index", "--pool", tmp_path / "first.parquet", "--pool", tmp_path / "rest.jsonl", "--on-disk", "--out", out,
        "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    built = json.loads(run.stdout)
    assert built["n_demonstrations"] == len(pool)
    assert built["on_disk"]
    return out


def test_commands_take_it_like_any_index(
    ragalign: Command, folder: Path, starter_index: Path, tiny_model: Path, tmp_path: Path
) -> None:
    search = ("How do I bake bread?", "-k", "5", "--exclude-self", "--json")
    found = [json.loads(ragalign("search", index, *search).stdout) for index in (folder, starter_index)]
    ids = [[hit["id"] for hit in each["hits"]] for each in found]
    assert ids[0] == ids[1]
    packed = [
        ragalign("pack", index, "Why is the sky blue?", "--tokenizer", tiny_model).stdout
        for index in (folder, starter_index)
    ]
    assert packed[0] == packed[1] != ""
    out = tmp_path / "a.jsonl"
    queries = tmp_path / "q.jsonl"
    queries.write_text('{"id": "1", "instruction": "Why is the sky blue?"}\n')
    command = ("generate", folder, "--model", tiny_model, "--backend", "transformers", "--max-new-tokens", "4")
    assert ragalign(*command, "--queries", queries, "--out", out).returncode == 0
    assert "nothing to do" in ragalign(*command, "--queries", queries, "--out", out).stderr
    info = json.loads(ragalign("index", "info", folder, "--json").stdout)
    assert info["n_demonstrations"] == len(Pool.load(STARTER))
    assert "on disk" in ragalign("index", "info", folder).stdout
    assert ragalign("index", "verify", folder).returncode == 0


def test_what_it_cannot_do_gets_one_line_and_changes_nothing(ragalign: Command, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for command, message in (
        (("index", "--pool", STARTER, "--on-disk", "--out", folder), "exists; an index on disk is not replaced"),
        (("index", "--pool", STARTER, "--on-disk", "--near-duplicates", "0.9", "--out", tmp_path / "b"), "in memory"),
        (("index", "--pool", STARTER, "--on-disk", "--kind", "flat", "--out", tmp_path / "b"), "flat"),
        (("index", "add", folder, "--pool", STARTER), "is an index on disk"),
        (("search", folder, "Why?", "--retriever", "bm25"), "no retriever 'bm25'"),
        (("search", folder, "Why?", "--where", "category=maths"), "no filters"),
        (("bench", "--index", folder, "--queries", STARTER, "--model", "m", "--out", tmp_path / "b"), "on disk"),
    ):
        run = ragalign(*command)
        assert run.returncode != 0
        assert message in " ".join(run.stderr.split())
        assert "Traceback" not in run.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not (tmp_path / "b").exists()


def test_a_damaged_one_is_refused(ragalign: Command, folder: Path) -> None:
    with (folder / "vectors.f32").open("r+b") as file:
        file.write(b"\xff" * 64)
    run = ragalign("index", "verify", folder)
    assert run.returncode != 0
    assert "not finite" in run.stderr
    (folder / "ids.bin").write_bytes(b"")
    run = ragalign("search", folder, "Why?")
    assert run.returncode != 0
    assert "ids.bin has 0 bytes" in " ".join(run.stderr.split())
