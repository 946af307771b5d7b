from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.pool import FileReport, LoadReport, Pool, SkippedRow

ADVICE = 'correct the row, or skip such rows (on_error="skip", --on-error skip)'
GOOD = {"instruction": "q", "output": "a"}


def write(folder: Path, name: str, *lines: dict[str, Any] | bytes) -> Path:
    path = folder / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


BAD_ROWS = [
    (b'{"instruction": "q", "output"', "not valid JSON (Expecting ':' delimiter at column 30)"),
    (b'{"instruction": "caf\xe9", "output": "a"}', "not UTF-8: byte 0xe9 at byte 21 of the line"),
    ({"instruction": "", "output": "a"}, "the instruction is empty"),
    ({"instruction": "q", "output": " \n\u3000"}, "the response is empty"),
    ({"instruction": "q", "output": "a \ud83d b"}, "the response contains a lone surrogate (U+D83D) at character 3"),
    ({"instruction": "\udc00", "output": "a"}, "the instruction contains a lone surrogate (U+DC00) at character 1"),
    ({"instruction": "q", "output": "a", "note": "\ud800"}, "the metadata contains a lone surrogate (U+D800)"),
    ({"instruction": "q", "output": "a", "id": "\ud800"}, "the id or source contains a lone surrogate (U+D800)"),
    ({"instruction": "q\0", "output": "a"}, "the instruction contains a NUL character (U+0000) at character 2"),
    ({"instruction": "q", "output": 4}, "the field 'output' is a number, not text"),
    (
        {"id": "first", "instruction": "q", "output": "other"},
        "the id 'first' was already used in line 1 for other content",
    ),
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
def test_a_bad_row_stops_a_strict_load_with_its_place(tmp_path: Path, line: Any, reason: str) -> None:
    path = write(tmp_path, "pool.jsonl", {**GOOD, "id": "first"}, b"", line, GOOD)
    with pytest.raises(DataError) as caught:
        Pool.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: {reason}")
    assert message.endswith(f"; {ADVICE}")
    assert "\n" not in message
    assert caught.value.__cause__ is None


def test_bad_rows_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    lines = [line for line, _ in BAD_ROWS]
    path = write(tmp_path, "pool.jsonl", {**GOOD, "id": "first"}, *lines, GOOD, {**GOOD, "output": "b"})
    pool = Pool.load(path, on_error="skip")
    assert [demo.response for demo in pool] == ["a", "b"]
    (report,) = pool.report.files
    assert (report.n_rows, report.n_loaded, report.n_duplicates) == (len(lines) + 3, 2, 1)
    assert [row.line for row in report.skipped] == list(range(2, len(lines) + 2))
    for row, (_, reason) in zip(pool.report.skipped, BAD_ROWS, strict=True):
        assert row.reason.startswith(reason)
        assert str(row) == f"{path}:{row.line}: {row.reason}"


def test_unknown_shapes_advise_to_name_the_fields(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"pool.jsonl:1: no known shape fits the fields of the row \(x, y\); name them: fields="
    ):
        Pool.load(write(tmp_path, "pool.jsonl", {"x": "q", "y": "a"}))


def test_rows_without_lines_are_called_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist([GOOD, {**GOOD, "output": ""}]), tmp_path / "pool.parquet")
    with pytest.raises(DataError, match=r"pool.parquet:row 2: the response is empty; "):
        Pool.load(tmp_path / "pool.parquet")
    skipped = Pool.load(tmp_path / "pool.parquet", on_error="skip").report.skipped
    assert skipped == (SkippedRow(str(tmp_path / "pool.parquet"), 2, "the response is empty", "row"),)
    assert str(skipped[0]) == f"{tmp_path / 'pool.parquet'}:row 2: the response is empty"


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "pool.jsonl", {**GOOD, "output": ""})
    with pytest.raises(DataError, match=r"no usable row; first reason: .*pool.jsonl:1: the response is empty"):
        Pool.load(path, on_error="skip")
    for name, content in (("blank.jsonl", b"\n\n"), ("none.json", b"[]"), ("head.csv", b"instruction,output\n")):
        with pytest.raises(DataError, match="the file has no rows"):
            Pool.load(write(tmp_path, name, content), on_error="skip")


def test_the_same_content_is_added_once_across_files(tmp_path: Path) -> None:
    a = write(tmp_path, "a.jsonl", {**GOOD, "id": 1}, {**GOOD, "id": 2}, {**GOOD, "output": "b"})
    b = write(
        tmp_path, "b.jsonl", {"prompt": "q", "completion": "a", "id": 1}, {"prompt": "new", "completion": "a", "id": 2}
    )
    pool = Pool.load([a, b])
    assert [(d.instruction, d.response, d.source, d.source_id) for d in pool] == [
        ("q", "a", "a.jsonl", "1"),
        ("q", "b", "a.jsonl", None),
        ("new", "a", "b.jsonl", "2"),
    ]
    assert pool.report == LoadReport(
        (
            FileReport(str(a), 3, 2, 1, shapes={"alpaca": 3}),
            FileReport(str(b), 2, 1, 1, shapes={"plain": 2}),
        )
    )
    assert (pool.report.n_rows, pool.report.n_loaded, pool.report.n_duplicates) == (5, 3, 2)


def test_conversations_that_go_on_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "pool.jsonl", {"conversations": ["q", "a"]}, {"conversations": ["q2", "a2", "q3", "a3"]})
    pool = Pool.load(path)
    assert pool.report.files[0].n_multi_turn == 1
    assert pool[1].metadata == {
        "further_turns": [{"role": "user", "content": "q3"}, {"role": "assistant", "content": "a3"}]
    }


def test_unwrapping_is_on_request_and_counted(tmp_path: Path) -> None:
    wrapped = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
        "### Instruction: Add 2 and 3."
    )
    path = write(tmp_path, "pool.jsonl", {"instruction": wrapped, "output": "5"}, GOOD)
    assert Pool.load(path).instructions == [wrapped, "q"]
    pool = Pool.load(path, unwrap=True)
    assert pool.instructions == ["Add 2 and 3.", "q"]
    assert pool.report.files[0].n_unwrapped == 1


def test_a_wrapper_around_nothing_is_an_empty_instruction(tmp_path: Path) -> None:
    wrapped = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
        "### Instruction:"
    )
    with pytest.raises(DataError, match="the instruction is empty"):
        Pool.load(write(tmp_path, "pool.jsonl", {"instruction": wrapped, "output": "5"}), unwrap=True)


def test_metadata_that_json_cannot_hold(tmp_path: Path) -> None:
    pool = Pool.load(
        write(tmp_path, "pool.jsonl", b'{"instruction": "q", "output": "a", "s": NaN, "t": [-Infinity, 1.5]}')
    )
    assert pool[0].metadata == {"s": None, "t": [None, 1.5]}


def test_parquet_values_beyond_json(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {**GOOD, "day": datetime.date(2023, 5, 1), "price": Decimal("1.50")}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert Pool.load(tmp_path / "a.parquet")[0].metadata == {"day": "2023-05-01", "price": "1.50"}
    pq.write_table(pa.Table.from_pylist([{**GOOD, "image": b"\x89PNG"}]), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"b.parquet:row 1: the metadata cannot be written as JSON \(a value of type bytes\)"
    ):
        Pool.load(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a" * 5000, "a" * 300 + ".jsonl", "a" * 300 + ".parquet"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(DataError, match=r"cannot be accessed \(.*\); check the path"):
        Pool.load(name)


def test_escaped_pairs_of_surrogates_are_characters(tmp_path: Path) -> None:
    path = write(tmp_path, "pool.jsonl", b'{"instruction": "q", "output": "\\ud83d\\ude00"}')
    assert Pool.load(path)[0].response == "😀"


def test_options_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "pool.jsonl", GOOD)
    with pytest.raises(ConfigError, match="unknown on_error 'ignore': use strict or skip"):
        Pool.load(path, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown shape"):
        Pool.load(path, shape="parquet")
    with pytest.raises(ConfigError, match="no source: name"):
        Pool.load([])


_MEASURE = """
import resource, sys
from ragalign.pool import Pool
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pool = Pool.load(sys.argv[1])
print(len(pool), max(map(len, pool.responses)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("extension", ["jsonl", "json", "csv"])
def test_long_responses_load_without_multiplying_in_memory(tmp_path: Path, extension: str) -> None:
    """Forty responses of 5 MB: the table holds 200 MB, and reading may add a few rows, not the file over again."""
    path = tmp_path / f"pool.{extension}"
    with path.open("w") as file:
        file.write({"jsonl": "", "json": "[\n", "csv": "instruction,output\n"}[extension])
        for i in range(40):
            text = f"{i} " + "word " * 1_000_000
            row = f"q{i},{text}" if extension == "csv" else json.dumps({"instruction": f"q{i}", "output": text})
            file.write(row + (",\n" if extension == "json" and i < 39 else "\n"))
        file.write("]" if extension == "json" else "")
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
    n, longest, kilobytes = map(int, done.stdout.split())
    path.unlink()
    assert (n, longest) == (40, 5_000_003)
    # A JSON document is one text, which comes on top, and decoding it holds it twice for a moment.
    assert kilobytes * 1024 < (650e6 if extension == "json" else 420e6)


def test_unused_fields_and_wrappers_are_counted(tmp_path: Path) -> None:
    wrapped = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request. "
        "### Instruction: Add 2 and 3. ### Response:"
    )
    rows = [
        {"instruction": wrapped, "output": "5", "score": 0.5, "text": "", "tags": []},
        {"instruction": "q", "output": "a", "score": None, "text": "t", "tags": ["x"]},
        {"instruction": "q", "input": "c", "output": "a", "score": 0},
    ]
    path = write(tmp_path, "pool.jsonl", *rows)
    [file] = Pool.load(path).report.files
    assert (file.n_wrapped, file.n_unwrapped, file.unused) == (1, 0, {"score": 2, "text": 1, "tags": 1})
    [file] = Pool.load(path, unwrap=True, metadata=["score"]).report.files
    assert (file.n_wrapped, file.n_unwrapped, file.unused) == (0, 1, {"text": 1, "tags": 1})


def test_compressed_pools(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{n}", "output": "a"} for n in range(3)]
    contents = {
        "a.jsonl.gz": "".join(json.dumps(row) + "\n" for row in rows),
        "b.json.gz": json.dumps(rows),
        "c.csv.GZ": "instruction,output\n" + "".join(f"q{n},a\n" for n in range(3)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(gzip.compress(content.encode()))
        assert Pool.load(tmp_path / name).instructions == ["q0", "q1", "q2"]
    Pool.load(tmp_path / "a.jsonl.gz").save(tmp_path / "d.parquet")
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress((tmp_path / "d.parquet").read_bytes()))
    assert Pool.load(tmp_path / "d.parquet.gz").instructions == ["q0", "q1", "q2"]
