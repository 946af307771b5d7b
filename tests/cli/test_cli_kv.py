"""`ragalign kv`: what can be checked is checked before an engine starts, in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures.command import Command

from ragalign.indexes import Index
from ragalign.recipes import data_folder
from ragalign.reuse.pieces import Piece, piece_name
from ragalign.reuse.store import Store, StoreManifest

COMMAND = str(Path(sys.executable).with_name("ragalign"))
BLOOM = {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_layer": 2, "hidden_size": 32, "n_head": 2}


def filled(folder: Path) -> Store:
    store = Store.create(folder, StoreManifest((1, 2), "template", "tokenizer"))
    store.write(piece_name([3, 4]), Piece(torch.ones(2, 1, 2, 1, 4)))
    return store


def test_info_and_verify_find_the_stores_beside_an_index(tmp_path: Path, ragalign: Command) -> None:
    store = filled(tmp_path / "idx.kv" / "reuse-model")
    done = ragalign("kv", "info", str(tmp_path / "idx"), "--json")
    told = json.loads(done.stdout)
    assert (told["n_pieces"], told["n_prefix_tokens"], told["key"]) == (1, 2, store.key)
    assert ragalign("kv", "verify", str(tmp_path / "idx")).returncode == 0
    path = store.path(piece_name([3, 4]))
    path.write_bytes(path.read_bytes()[:-1])
    done = ragalign("kv", "verify", str(store.folder), "--json")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["faults"]) == 1


RECIPE = """
[template]
form = "package:testbed/template.toml"
[constants]
kind = "random"
pool = "package:testbed/pool.jsonl"
n = 1
[retriever]
name = "dense"
[packing]
max_demonstrations = 5
max_tokens = 100000
max_demonstration_tokens = 1000
[reuse]
enabled = true
[decoding]
max_tokens = 8
"""


@pytest.mark.slow
@pytest.mark.own_engine
@pytest.mark.timeout(900)
def test_from_a_pool_to_a_verdict(tmp_path: Path, ragalign: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    world = data_folder() / "testbed"
    model, rows = world / "model", (world / "pool.jsonl").read_text().splitlines(keepends=True)
    questions = (world / "queries.jsonl").read_text().splitlines(keepends=True)
    for name, lines in (("pool", rows[:40]), ("more", rows[40:45]), ("queries", questions[:6])):
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "mine.toml").write_text(RECIPE)
    index, given = tmp_path / "idx", ("--recipe", tmp_path / "mine.toml", "--model", model)
    assert ragalign("index", "--pool", tmp_path / "pool.jsonl", "--out", index).returncode == 0
    options = (*given, "--dtype", "float32", "--json")

    built = json.loads(ragalign("kv", "build", index, *options).stdout)
    assert (built["n_computed"], built["n_present"], built["n_removed"]) == (40, 0, 0)
    told = json.loads(ragalign("kv", "info", index, "--json").stdout)
    assert (told["store"], told["n_pieces"], told["key"]) == (built["store"], 41, built["key"])

    # The index changes; one piece is torn, and another has a wrong bit.
    store = Store(built["store"])
    torn, flipped = [name for name in store.names() if name != store.prefix_name][:2]
    store.path(torn).write_bytes(store.path(torn).read_bytes()[:-5])
    content = bytearray(store.path(flipped).read_bytes())
    content[-1] ^= 1
    store.path(flipped).write_bytes(bytes(content))
    assert ragalign("kv", "verify", index).stderr.count("damaged") == 2
    first = json.loads((tmp_path / "pool.jsonl").read_text().splitlines()[5])["id"]
    assert ragalign("index", "add", index, "--pool", tmp_path / "more.jsonl").returncode == 0
    pool = Index.open(index).pool
    gone = next(one.id for one in pool if one.source_id == first)
    assert ragalign("index", "remove", index, "--id", gone).returncode == 0
    kept = {name: store.path(name).stat().st_mtime_ns for name in store.names()}
    built = json.loads(ragalign("kv", "build", index, *options).stdout)
    assert built["n_removed"] == 1
    assert built["n_computed"] in (6, 7)  # five new ones and the damaged ones, one of which can be the removed one
    untouched = [name for name in store.names() if store.path(name).stat().st_mtime_ns == kept.get(name)]
    assert len(untouched) == 45 - built["n_computed"]
    assert ragalign("kv", "verify", index).returncode == 0

    check = ("kv", "check", index, *given, "--queries", tmp_path / "queries.jsonl")
    wrong = ragalign(*check, "--dtype", "bfloat16")
    assert wrong.returncode == 2
    assert "dtype: float32 there, bfloat16 here" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    done = ragalign(*check, "--dtype", "float32", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["n"]) == (0, "pass", 6)
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["difference"] == pytest.approx(found["nll_reused"] - found["nll_full"], abs=1e-5)
    assert found["exact_difference"] < 1e-4
    assert found["n_reused_tokens"] > 0


@pytest.mark.slow
@pytest.mark.own_engine
@pytest.mark.timeout(900)
def test_a_killed_build_goes_on_and_eight_bits_are_checked(
    tmp_path: Path, ragalign: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    world = data_folder() / "testbed"
    (tmp_path / "mine.toml").write_text(RECIPE)
    index, folder = tmp_path / "idx", tmp_path / "kv"
    assert ragalign("index", "--pool", world / "pool.jsonl", "--out", index).returncode == 0
    given = ("--recipe", tmp_path / "mine.toml", "--model", world / "model", "--dtype", "float32", "--store", folder)
    build = ("kv", "build", index, *given, "--precision", "int8", "--json")
    with subprocess.Popen([COMMAND, *map(str, build)], start_new_session=True, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 300
        while process.poll() is None and sum(1 for _ in folder.glob("pieces/??/*.safetensors")) < 20:
            assert time.monotonic() < until
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "it was over too soon"
    n_all = len(Index.open(index).pool) - 1  # the constant one
    built = json.loads(ragalign(*build).stdout)
    assert built["n_computed"] + built["n_present"] == n_all
    assert 0 < built["n_present"] < n_all
    assert ragalign("kv", "verify", folder).returncode == 0

    (tmp_path / "q.jsonl").write_text("".join((world / "queries.jsonl").read_text().splitlines(keepends=True)[:6]))
    done = ragalign("kv", "check", index, *given, "--queries", tmp_path / "q.jsonl", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["verdict"], found["precision"]) == (0, "pass", "int8")
    assert found["n_reused_tokens"] == found["n_planned_tokens"] > 0
    assert found["exact_difference"] < found["limits"]["exact"] == 0.05


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["info", "nothing"], 1, "no store of keys and values"),
        (["info", "index"], 1, "no store of keys and values"),
        (["verify", "q.jsonl"], 1, "no store of keys and values"),
        (["build", "nothing", "--model", "bloom"], 2, "ALiBi"),
        (["build", "nothing", "--model", "bloom", "--backend", "transformers"], 2, "vllm"),
        (["check", "nothing", "--model", "bloom", "--queries", "q.jsonl"], 1, "reference"),
    ],
)
def test_faults_are_one_line(tmp_path: Path, ragalign: Command, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "bloom").mkdir()
    (tmp_path / "bloom" / "config.json").write_text(json.dumps(BLOOM))
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "manifest.json").write_text('{"format": 7, "dimensions": 384}')
    (tmp_path / "q.jsonl").write_text('{"id": "1", "instruction": "Why?"}\n')
    given = [str(tmp_path / one) if one in ("nothing", "bloom", "index", "q.jsonl") else one for one in arguments]
    done = ragalign("kv", *given)
    assert done.returncode == code
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
