"""`ragalign index`: the command contract on real pools, and what bad input leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixtures.command import Command, repeated

from ragalign.indexes import Index


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"r{n}", "instruction": f"What is {n} times {n}?", "response": str(n * n)} for n in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def built(ragalign: Command, rows: Path, minilm_folder: Path, tmp_path: Path) -> Path:
    run = ragalign("index", "--pool", rows, "--encoder", minilm_folder, "--out", tmp_path / "index", "--no-cache")
    assert run.returncode == 0, run.stderr
    return tmp_path / "index"


def test_several_pools_of_different_shapes_make_one_index(
    ragalign: Command, shared_data: Path, rows: Path, minilm_folder: Path, tmp_path: Path
) -> None:
    small = tmp_path / "sharegpt.json"
    small.write_text(json.dumps(json.loads((shared_data / "pools" / "lima_1k_sharegpt.json").read_text())[:20]))
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps(json.loads((shared_data / "pools" / "alpaca_en_demo.json").read_text())[:20]))
    out = tmp_path / "index"
    arguments = (
        *repeated("--pool", [small, alpaca, rows]),
        "--encoder",
        minilm_folder,
        "--out",
        out,
        "--unwrap",
        "--json",
    )
    run = ragalign("index", *arguments)
    assert run.returncode == 0, run.stderr
    record = json.loads(run.stdout)
    assert record["n_demonstrations"] == 52
    assert [file["n_loaded"] for file in record["files"]] == [20, 20, 12]
    assert not any("### Instruction" in text for text in Index.open(out).pool.instructions)


def test_info_and_verify(ragalign: Command, built: Path) -> None:
    about = json.loads(ragalign("index", "info", built, "--json").stdout)
    assert about["n_demonstrations"] == 12
    assert about["encoder"]["dimension"] == 384
    assert ragalign("index", "verify", built).returncode == 0
    victim = max(built.glob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    run = ragalign("index", "verify", built)
    assert run.returncode == 1
    assert victim.name in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_add_and_remove(ragalign: Command, built: Path, rows: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(rows.read_text() + json.dumps({"id": "new", "instruction": "Say hi.", "response": "Hi!"}) + "\n")
    assert json.loads(ragalign("index", "add", built, "--pool", more, "--json").stdout)["n_demonstrations"] == 13
    run = ragalign("index", "remove", built, "--id", "new", "--id", "r3", "--json")
    assert json.loads(run.stdout)["n_demonstrations"] == 11, run.stderr
    assert ragalign("index", "verify", built).returncode == 0
    run = ragalign("index", "remove", built, "--id", "nobody")
    assert run.returncode == 1
    assert "nobody" in run.stderr


def test_a_recipe_names_everything(ragalign: Command, rows: Path, minilm_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'[index]\npool = ["rows.jsonl"]\nencoder = "{minilm_folder}"\nmetric = "l2"\n')
    run = ragalign("index", "--recipe", recipe, "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["metric"] == "l2"
    assert len(Index.open(tmp_path / "mine")) == 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"instruction": "a", "response": "b"\n', ":2: "),
        (b'{"instruction": "a", "response": ""}\n', ":2: "),
        (b'{"instruction": "a\xff", "response": "b"}\n', ":2: "),
        (b'{"instruction": "a\\ud800", "response": "b"}\n', ":2: "),
        (b'{"id": "good", "instruction": "a", "response": "b"}\n', ":2: "),
    ],
    ids=["malformed", "empty response", "not UTF-8", "lone surrogate", "duplicated id"],
)
def test_a_bad_row_is_named_and_the_old_index_stays(
    ragalign: Command, built: Path, minilm_folder: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"id": "good", "instruction": "x", "response": "y"}\n' + content)
    before = {path.name: path.read_bytes() for path in built.iterdir()}
    run = ragalign("index", "--pool", bad, "--encoder", minilm_folder, "--out", built)
    assert run.returncode == 1
    assert f"bad.jsonl{message}" in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in built.iterdir()} == before
    skipping = ragalign("index", "--pool", bad, "--encoder", minilm_folder, "--out", built, "--on-error", "skip")
    assert skipping.returncode == 0
    assert f"bad.jsonl{message}" in skipping.stderr
    assert len(Index.open(built)) == 1


def test_a_response_of_five_megabytes_is_indexed_and_never_packed(
    ragalign: Command, minilm_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"instruction": "Why?", "response": "because " * 650_000}) + "\n")
    out = tmp_path / "index"
    run = ragalign("index", "--pool", path, "--encoder", minilm_folder, "--out", out)
    assert run.returncode == 0, run.stderr
    packed = json.loads(ragalign("pack", out, "Why not?", "--tokenizer", tiny_model, "--json").stdout)
    assert packed["demonstrations"] == []
    assert [one["reason"] for one in packed["dropped"]] == ["too_long"]


def test_interrupted_it_leaves_the_old_index(built: Path, minilm_folder: Path, tmp_path: Path) -> None:
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps({"instruction": f"word {n} " * 60, "response": "x"}) + "\n" for n in range(3000))
    )
    arguments = ["index", "--pool", str(many), "--encoder", str(minilm_folder), "--out", str(built), "--no-cache"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from ragalign_cli.main import main; main()", *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert len(Index.open(built)) == 12


def test_what_is_missing_is_said(ragalign: Command, rows: Path, minilm_folder: Path, tmp_path: Path) -> None:
    for arguments, code, message in (
        ((), 2, "give --pool"),
        (("--pool", rows), 2, "give --out"),
        (("--pool", tmp_path / "gone.jsonl", "--out", tmp_path / "i"), 1, "gone.jsonl"),
        (("--pool", rows, "--encoder", tmp_path / "nothing", "--out", tmp_path / "i"), 2, "nothing"),
        (("--pool", rows, "--encoder", minilm_folder, "--kind", "Magic7", "--out", tmp_path / "i"), 2, "Magic7"),
        (("--pool", rows, "--encoder", minilm_folder, "--out", rows), 2, "rows.jsonl"),
    ):
        run = ragalign("index", *arguments)
        assert (run.returncode, len(run.stderr.splitlines())) == (code, 1), run.stderr
        assert message in run.stderr


def test_long_texts_and_unused_fields_are_said(ragalign: Command, minilm_folder: Path, tmp_path: Path) -> None:
    preamble = "Answer as well as you can. " * 60
    texts = [*(preamble + letter for letter in "abc"), "short"]
    lines = (json.dumps({"instruction": text, "output": "a", "score": 1}) + "\n" for text in texts)
    (tmp_path / "pool.jsonl").write_text("".join(lines))
    out = tmp_path / "index"
    run = ragalign("index", "--pool", tmp_path / "pool.jsonl", "--encoder", minilm_folder, "--out", out, "--no-cache")
    assert run.stderr.count("3 of 4 texts are longer than the 256 tokens of the encoder") == 1
    assert "pool.jsonl: not part of any demonstration: score (4 rows); kept as metadata" in run.stderr
    assert "3 of 4 texts are longer than the encoder's 256 tokens" in ragalign("index", "info", out).stdout
    record = json.loads(ragalign("index", "info", out, "--json").stdout)
    assert (record["n_truncated"], record["encoder"]["max_tokens"]) == (3, 256)
    run = ragalign("search", out, preamble)
    assert run.stderr.count("1 of 1 questions are longer than the 256 tokens of the encoder") == 1


def test_a_wrapped_pool_hints_at_unwrap(ragalign: Command, shared_data: Path) -> None:
    path = shared_data / "pools" / "lima_1k_sharegpt.json"
    run = ragalign("pool", "inspect", path)
    assert "1,000 of 1,000 instructions are in the Alpaca prompt template; --unwrap extracts them" in run.stderr
    assert "--unwrap" not in ragalign("pool", "inspect", path, "--unwrap").stderr
