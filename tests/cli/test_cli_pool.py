"""`ragalign pool`, as a script and as a person meets it."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ragalign.pool import Pool
from ragalign_cli.main import main


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Runs `ragalign pool` in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: object, columns: int = 100) -> Run:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["ragalign", "pool", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return Run(int(exit_.value.code or 0), out, err)

    return run


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first = write(
        tmp_path / "first.jsonl",
        {"id": "r1", "instruction": "Name a river in Europe.", "output": "The Rhine."},
        {"id": "r2", "instruction": "Name a river in Europe.", "output": "The Rhine."},
        {"id": "r3", "instruction": "name  a RIVER in Europe.", "output": "The Danube."},
        {"id": "r4", "instruction": "Name a river in Europa.", "output": "The Loire."},
    )
    second = write(
        tmp_path / "second.jsonl",
        {"conversations": ["Count to three.", "1, 2, 3", "And four?", "4"]},
        {"conversations": ["Count to three.", ""]},
        "{",
    )
    return first, second


def test_inspect_shows_counts_lengths_and_reasons(pool: Callable[..., Run], files: tuple[Path, Path]) -> None:
    run = pool("inspect", *files)
    assert (run.returncode, run.stderr) == (0, "")
    assert [line.split() for line in run.stdout.splitlines()[:3]] == [
        ["file", "shape", "rows", "loaded", "duplicates", "skipped", "multi-turn"],
        ["first.jsonl", "alpaca", "4", "3", "1", "0", "0"],
        ["second.jsonl", "lima", "3", "1", "0", "2", "1"],
    ]
    assert ["instruction", "3", "4", "5", "5", "5", "5", "4"] in [line.split() for line in run.stdout.splitlines()]
    assert "4 demonstrations; 1 repeat an earlier instruction with a different response" in run.stdout
    assert f"{files[1]}:2: the response is empty" in run.stdout
    assert f"{files[1]}:3: not valid JSON" in run.stdout


def test_inspect_as_json(pool: Callable[..., Run], files: tuple[Path, Path]) -> None:
    run = pool("inspect", *files, "--json")
    (line,) = run.stdout.splitlines()
    record = json.loads(line)
    assert record["files"][0] == {
        "file": str(files[0]),
        "shapes": {"alpaca": 4},
        "n_rows": 4,
        "n_loaded": 3,
        "n_duplicates": 1,
        "n_multi_turn": 0,
        "n_unwrapped": 0,
        "n_wrapped": 0,
        "unused": {},
        "n_skipped": 0,
        "skipped": [],
    }
    assert record["files"][1]["skipped"][0] == {"line": 2, "reason": "the response is empty"}
    assert record["n_demonstrations"] == 4
    assert record["n_repeated_instructions"] == 1
    assert record["fingerprint"] == Pool.load(files, on_error="skip").fingerprint
    assert record["words"]["response"] == {
        "min": 2.0,
        "p25": 2.0,
        "median": 2.0,
        "p75": 2.25,
        "p95": 2.85,
        "max": 3.0,
        "mean": 2.25,
    }


def test_inspect_names_files_of_one_name_by_their_paths(pool: Callable[..., Run], tmp_path: Path) -> None:
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(write(tmp_path / folder / "pool.jsonl", {"prompt": f"q {folder}", "completion": "a"}))
    run = pool("inspect", *paths, columns=200)
    assert all(str(path) in run.stdout for path in paths)


def test_inspect_lists_twenty_and_counts_the_rest(pool: Callable[..., Run], tmp_path: Path) -> None:
    path = write(tmp_path / "pool.jsonl", {"prompt": "q", "completion": "a"}, *["{"] * 25)
    assert "... and 5 more; --json lists all" in pool("inspect", path).stdout
    assert len(json.loads(pool("inspect", path, "--json").stdout)["files"][0]["skipped"]) == 25
    run = pool("convert", path, "--on-error", "skip", "--out", tmp_path / "out.jsonl")
    assert run.stderr.count("skipped") == 21
    assert "skipped 5 more rows; `ragalign pool inspect --json` lists all" in run.stderr


def test_inspect_shows_text_that_looks_like_markup(pool: Callable[..., Run], tmp_path: Path) -> None:
    path = write(tmp_path / "pool.jsonl", {"prompt": "q", "completion": "a"}, {"[bold]x": 1, "[/red]": 2})
    assert "no known shape fits the fields of the row ([bold]x, [/red])" in pool("inspect", path).stdout


def test_convert_writes_what_load_reads(pool: Callable[..., Run], files: tuple[Path, Path], tmp_path: Path) -> None:
    expected = Pool.load(files, on_error="skip")
    for name in ("out.parquet", "out.jsonl"):
        run = pool("convert", *files, "--on-error", "skip", "--out", tmp_path / name)
        assert run.returncode == 0
        assert f"wrote 4 demonstrations to {tmp_path / name}" in run.stderr
        assert f"skipped {files[1]}:2: the response is empty" in run.stderr
        assert Pool.load(tmp_path / name) == expected
    record = json.loads(pool("convert", files[0], "--out", tmp_path / "one.jsonl", "--json").stdout)
    assert (record["n_demonstrations"], record["out"]) == (3, str(tmp_path / "one.jsonl"))
    assert record["files"][0]["n_duplicates"] == 1


def test_convert_with_own_field_names(pool: Callable[..., Run], tmp_path: Path) -> None:
    path = write(tmp_path / "faq.jsonl", {"q": "Where?", "reply": "Here.", "key": 7})
    out = tmp_path / "out.jsonl"
    run = pool(
        "convert", path, "--field", "instruction=q", "--field", "response=reply", "--field", "id=key", "--out", out
    )
    assert run.returncode == 0
    demo = Pool.load(out)[0]
    assert (demo.instruction, demo.response, demo.source, demo.source_id) == ("Where?", "Here.", "faq.jsonl", "7")


def test_dedupe_removes_and_says_what(pool: Callable[..., Run], files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run = pool("dedupe", files[0], "--out", out)
    assert run.returncode == 0
    assert [line.split()[:3] for line in run.stdout.splitlines()] == [
        ["removed", "repeats", "similarity"],
        ["r3", "r1", "1.000"],
    ]
    assert f"removed 1 of 3 demonstrations (1 rows were exact duplicates); wrote 2 to {out}" in run.stderr
    assert [demo.source_id for demo in Pool.load(out)] == ["r1", "r4"]

    run = pool("dedupe", files[0], "--near-duplicates", "0.6", "--out", out, "--json")
    records = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(r["source_id"], r["duplicate_of"]["source_id"]) for r in records] == [("r3", "r1"), ("r4", "r1")]
    assert 0.6 <= records[1]["similarity"] < 1
    assert [demo.source_id for demo in Pool.load(out)] == ["r1"]


def test_dedupe_keeps_each_removed_one_on_its_line(pool: Callable[..., Run], tmp_path: Path) -> None:
    text = "東京 \x1b[31m" + "long " * 50
    rows = [{"prompt": text, "completion": str(i)} for i in range(3)]
    run = pool("dedupe", write(tmp_path / "p.jsonl", *rows), "--out", tmp_path / "o.jsonl", columns=80)
    assert len(run.stdout.splitlines()) == 3
    assert "\x1b" not in run.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("inspect", "none.jsonl"), 1, "none.jsonl: no such file; check the path"),
        (("inspect", "FIRST", "--shape", "wide"), 2, "unknown shape 'wide'"),
        (("inspect", "FIRST", "--field", "q"), 2, "--field 'q': write it as FIELD=NAME"),
        (("inspect", "FIRST", "--field", "id=a", "--field", "id=b"), 2, "--field id is given twice"),
        (("inspect", "FIRST", "--field", "answer=a"), 2, "unknown field 'answer'"),
        (
            ("inspect", "SECOND", "--on-error", "strict"),
            1,
            "second.jsonl:2: the response is empty; correct the row, or",
        ),
        (("convert", "SECOND", "--out", "x.jsonl"), 1, "second.jsonl:2: the response is empty"),
        (("convert", "FIRST", "--out", "x.csv"), 2, "unknown extension '.csv' for a pool"),
        (
            ("dedupe", "FIRST", "--near-duplicates", "2", "--out", "x.jsonl"),
            2,
            "near must be above 0 and at most 1, not 2.0",
        ),
        (("convert", "FIRST"), 2, "missing option '--out'"),
    ],
)
def test_what_goes_wrong_is_one_line(
    pool: Callable[..., Run], files: tuple[Path, Path], arguments: tuple[str, ...], code: int, message: str
) -> None:
    names = {"FIRST": files[0], "SECOND": files[1]}
    run = pool(*(names.get(argument, argument) for argument in arguments))
    assert run.returncode == code
    assert message in run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("command", ["inspect", "convert", "dedupe"])
def test_help_has_examples(pool: Callable[..., Run], command: str) -> None:
    run = pool(command, "--help")
    assert f"Examples:\n    ragalign pool {command} " in run.stdout


def test_real_pools_from_the_command_line(pool: Callable[..., Run], shared_data: Path) -> None:
    names = ("lima_1k.jsonl", "lima_1k_sharegpt.json", "alpaca_en_demo.json", "refined_alpaca_1k_longest.json")
    run = pool("inspect", *(shared_data / "pools" / name for name in names), "--unwrap", "--json")
    record = json.loads(run.stdout)
    assert [file["shapes"] for file in record["files"]] == [
        {"plain": 1000},
        {"sharegpt": 1000},
        {"alpaca": 1000},
        {"sharegpt": 1000},
    ]
    assert [file["n_unwrapped"] for file in record["files"]] == [0, 1000, 0, 1000]
    assert [file["n_loaded"] + file["n_duplicates"] for file in record["files"]] == [1000] * 4


def test_heavy_packages_stay_out() -> None:
    code = (
        "import sys; sys.argv = ['ragalign', 'pool', '--help']\n"
        "from ragalign_cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pyarrow', 'datasets', 'faiss', 'torch', 'transformers', 'vllm', 'openai'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
