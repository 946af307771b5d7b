"""`ragalign index --on-disk`: built from files one after another, then searched, packed and answered from by name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest
from fixtures.chat import ask, post
from fixtures.command import Command
from fixtures.live import LiveCommand
from fixtures.scripted_server import ScriptedServer

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
    chat = ("Why is the sky blue?", *command[2:], "--json")
    shown = [json.loads(ragalign("chat", index, *chat).stdout)["prompt"]["text"] for index in (folder, starter_index)]
    assert shown[0] == shown[1] != ""
    plans = [
        json.loads(line)
        for index in (folder, starter_index)
        for line in ragalign(
            "plan", index, "--queries", queries, "--tokenizer", tiny_model, "--json"
        ).stdout.splitlines()[:1]
    ]
    assert [plan["prefix_bound"] for plan in plans] == [plans[0]["prefix_bound"]] * 2
    info = json.loads(ragalign("index", "info", folder, "--json").stdout)
    assert info["n_demonstrations"] == len(Pool.load(STARTER))
    assert "on disk" in ragalign("index", "info", folder).stdout
    assert ragalign("index", "verify", folder).returncode == 0


@pytest.mark.slow
def test_it_is_served_and_reloaded(folder: Path, tiny_model: Path, tmp_path: Path) -> None:
    with ScriptedServer(lambda _: "An answer.") as server:
        arguments = (folder, "--upstream", server.base_url, "--model", "m", "--tokenizer", tiny_model)
        with LiveCommand(tmp_path / "log", *arguments, "--name", "tiny") as running:
            for generation in (1, 2):
                until = time.monotonic() + 30
                while httpx.get(f"{running.url}/ready").json()["index_generation"] != generation:
                    assert time.monotonic() < until, running.log.read_text()
                    time.sleep(0.1)
                answer = post(running.url, ask("Why is the sky blue?"))
                assert answer.status_code == 200, answer.text
                assert running.process is not None
                os.kill(running.process.pid, signal.SIGHUP)


def test_what_it_cannot_do_gets_one_line_and_changes_nothing(ragalign: Command, folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for command, message in (
        (("index", "--pool", STARTER, "--on-disk", "--out", folder), "exists; an index on disk is not replaced"),
        (("index", "--pool", STARTER, "--on-disk", "--near-duplicates", "0.9", "--out", tmp_path / "b"), "in memory"),
        (("index", "--pool", STARTER, "--on-disk", "--kind", "flat", "--out", tmp_path / "b"), "inverted lists"),
        (("index", "--pool", STARTER, "--kind", "IVFnonsense", "--out", tmp_path / "b"), "'IVFnonsense' for 384 dimen"),
        (("index", "--pool", STARTER, "--near-duplicates", "0", "--out", tmp_path / "b"), "0"),
        (("index", "--pool", STARTER, "--out", tmp_path), "neither empty nor an index"),
        (("index", "add", folder, "--pool", STARTER), "is an index on disk"),
        (("search", folder, "Why?", "--retriever", "bm25"), "no retriever 'bm25'"),
        (("search", folder, "Why?", "--where", "category=maths"), "no filters"),
        (("serve", folder, "--also", "ica-random", "--upstream", "http://127.0.0.1:9"), "no retriever 'random'"),
        (("serve", folder, "--store", tmp_path, "--upstream", "http://127.0.0.1:9"), "--store is for recipes with"),
        (("bench", "--index", folder, "--queries", STARTER, "--model", "m", "--out", tmp_path / "b"), "on disk"),
    ):
        run = ragalign(*command)
        assert run.returncode != 0
        assert message in " ".join(run.stderr.split())
        assert "Traceback" not in run.stderr
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert not (tmp_path / "b").exists()


def test_interrupted_it_says_that_nothing_is_left(
    ragalign: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragalign.indexes import disk_writing

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk_writing, "train", interrupted)
    (tmp_path / "out").mkdir()
    Pool.load(STARTER).save(tmp_path / "pool.parquet")
    run = ragalign("index", "--pool", tmp_path / "pool.parquet", "--on-disk", "--out", tmp_path / "out" / "i")
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "interrupted; nothing was written\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_noticed_before_anything_is_encoded(
    ragalign: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragalign.indexes import batches, disk_writing

    Pool.load(STARTER).save(tmp_path / "pool.parquet")
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(disk_writing.shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1_000))
    monkeypatch.setattr(batches, "encoded", None)
    run = ragalign("index", "--pool", tmp_path / "pool.parquet", "--on-disk", "--out", tmp_path / "out" / "i")
    assert run.returncode != 0
    assert "0.0 MB free, and an index of 170 demonstrations takes at least another 0.4 MB" in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_options_of_the_form_hold_for_stored_files_too(ragalign: Command, tmp_path: Path) -> None:
    wrapped = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    rows = [
        {
            "instruction": f"{wrapped}\n\n### Instruction:\nName {n} rivers.\n\n### Response:\n",
            "response": f"River {n}.",
        }
        for n in range(50)
    ]
    (tmp_path / "w.json").write_text(json.dumps(rows))
    assert ragalign("pool", "convert", tmp_path / "w.json", "--out", tmp_path / "w.parquet").returncode == 0
    found = []
    for name, more in (("a", ("--on-disk",)), ("b", ())):
        index = ("index", "--pool", tmp_path / "w.parquet", "--unwrap", "--out", tmp_path / name, *more)
        run = ragalign(*index)
        assert run.returncode == 0, run.stderr
        hits = json.loads(ragalign("search", tmp_path / name, "Name 7 rivers?", "-k", "3", "--json").stdout)["hits"]
        found.append([hit["id"] for hit in hits])
    assert found[0][0] == found[1][0]


def test_a_damaged_one_is_refused(ragalign: Command, folder: Path) -> None:
    with (folder / "vectors.f32").open("r+b") as file:
        file.write(b"\xff" * 64)
    run = ragalign("index", "verify", folder)
    assert run.returncode != 0
    assert "the SHA-256 of vectors.f32 does not match" in " ".join(run.stderr.split())
    (folder / "ids.bin").write_bytes(b"")
    run = ragalign("search", folder, "Why?")
    assert run.returncode != 0
    assert "ids.bin has 0 bytes" in " ".join(run.stderr.split())
