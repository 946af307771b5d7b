from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import DataError
from ragalign.pool import Pool
from ragalign.pool.readers import read_file
from ragalign.pool.rows import Problem

ROW = {"instruction": "q", "output": "a"}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path) -> list[tuple[int, Any]]:
    return [(number, row.reason if isinstance(row, Problem) else row) for number, row in read_file(path)[1]]


def test_jsonl_lines_are_those_of_the_file(tmp_path: Path) -> None:
    line = json.dumps(ROW)
    path = write(tmp_path, "pool.jsonl", f"{line}\n\n   \r\n{line}\r\n{line}")
    assert read(path) == [(1, ROW), (4, ROW), (5, ROW)]


def test_jsonl_separators_inside_texts_are_no_line_breaks(tmp_path: Path) -> None:
    row = {"instruction": "a\u2028b\u0085c\x0bd", "output": "e\r\nf"}
    assert read(write(tmp_path, "pool.ndjson", json.dumps(row, ensure_ascii=False) + "\n")) == [(1, row)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instruction": "q"', "not valid JSON (Expecting ',' delimiter at column 20)"),
        (b'{"instruction": "q', "not valid JSON (Unterminated string starting at column 17)"),
        (b"[1, 2]", "a JSON value that is not an object"),
        (b'"text"', "a JSON value that is not an object"),
        (b'{"instruction": "caf\xe9"}', "not UTF-8: byte 0xe9 at byte 21 of the line"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
    ],
)
def test_jsonl_a_bad_line_does_not_stop_the_next(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(ROW).encode()
    rows = read(write(tmp_path, "pool.jsonl", b"\n".join([good, line, good])))
    assert rows[0] == (1, ROW)
    assert rows[2] == (3, ROW)
    assert rows[1][0] == 2
    assert rows[1][1].startswith(reason)


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv"])
def test_a_byte_order_mark_is_passed_over(tmp_path: Path, name: str) -> None:
    text = {
        "pool.jsonl": json.dumps(ROW),
        "pool.json": json.dumps([ROW]),
        "pool.csv": "instruction,output\nq,a\n",
    }[name]
    assert [row for _, row in read(write(tmp_path, name, "\ufeff" + text))] == [ROW]


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.json", "pool.csv", "pool.tsv"])
def test_utf_16_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="UTF-16; convert it to UTF-8"):
        read(write(tmp_path, name, "[]".encode("utf-16")))


def test_json_array_has_the_line_where_each_row_starts(tmp_path: Path) -> None:
    rows = [{"instruction": f"q{i}\n", "output": "[{}]\\"} for i in range(3)]
    path = write(tmp_path, "pool.json", "\n" + json.dumps(rows, indent=2))
    lines = path.read_text().split("\n")
    found = read(path)
    assert [row for _, row in found] == rows
    assert [lines[number - 1].strip() for number, _ in found] == ["{"] * 3


def test_json_on_one_line_numbers_its_rows(tmp_path: Path) -> None:
    """The line is 1 for all of them, which would help nobody to find the bad one."""
    path = write(tmp_path, "pool.json", json.dumps([ROW, 5, ROW, {"x": 1}]) + "\n\n")
    unit, rows = read_file(path)
    assert unit == "row"
    assert [number for number, _ in rows] == [1, 2, 3, 4]
    with pytest.raises(DataError, match=r"pool\.json:row 2: a JSON value that is not an object"):
        Pool.load(path)


def test_json_object_with_data(tmp_path: Path) -> None:
    document = {"version": {"data": [1]}, "data": [ROW, 3], "licence": "x"}
    expected = [ROW, "a JSON value that is not an object"]
    assert [row for _, row in read(write(tmp_path, "a.json", json.dumps(document, indent=1)))] == expected
    assert [row for _, row in read(write(tmp_path, "b.json", json.dumps(document)))] == expected
    assert read(write(tmp_path, "c.json", json.dumps({"data": [ROW]}))) == [(1, ROW)]


def test_json_that_is_json_lines(tmp_path: Path) -> None:
    line = json.dumps(ROW)
    assert read(write(tmp_path, "pool.json", f"\n{line}\n{{oops\n{line}\n")) == [
        (2, ROW),
        (3, "not valid JSON (Expecting property name enclosed in double quotes at column 2)"),
        (4, ROW),
    ]


def test_json_a_bad_byte_is_laid_to_its_row(tmp_path: Path) -> None:
    content = b'[\n{"instruction": "caf\xe9"},\n{"instruction": "\xc3\xa9"}\n]'
    assert read(write(tmp_path, "pool.json", content)) == [(2, "not UTF-8: byte 0xe9"), (3, {"instruction": "é"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"a": 2', ":2: not valid JSON (Expecting ',' delimiter)"),
        ('[\n{"a": 1}\n{"a": 2}]', ":3: not valid JSON (expected ',')"),
        ('[\n{"a": 1},\n]', ":3: not valid JSON (Expecting value)"),
        ("[] []", ":1: not valid JSON (extra text after the end of the JSON document)"),
        ("17", ":1: not valid JSON (neither an array of rows nor an object with an array of rows under 'data')"),
        (" \n ", ":2: not valid JSON (neither"),
        ('{\n"rows": []}', ": the document is an object without an array of rows under 'data'"),
        ('{\n"data": [] "x"}', ":2: not valid JSON (expected ',' or '}')"),
        ("{\n1: 2}", ":2: not valid JSON (a key of the object is not text)"),
        ('{\n"data"', ":2: not valid JSON (expected ':')"),
        ("[" * 100_000, ":1: not valid JSON (maximum recursion"),
    ],
)
def test_json_that_cannot_be_read_on(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, "pool.json", text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1), st.sampled_from([None, 0, 2]))
def test_json_readers_agree_with_the_parser(
    tmp_path_factory: Any, rows: list[dict[str, Any]], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("json")
    array = write(folder, "a.json", json.dumps(rows, indent=indent, ensure_ascii=False))
    document = write(folder, "b.json", json.dumps({"x": 1, "data": rows}, indent=indent))
    lines = write(folder, "c.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert [row for _, row in read(array)] == rows
    assert [row for _, row in read(document)] == rows
    assert read(lines) == list(enumerate(rows, 1))


cells = st.text(st.characters(exclude_categories=["Cs"]))


@settings(deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1), st.sampled_from([(".csv", ","), (".tsv", "\t")]))
def test_csv_reads_what_the_csv_module_writes(
    tmp_path_factory: Any, rows: list[tuple[str, str]], form: tuple[str, str]
) -> None:
    path = tmp_path_factory.mktemp("csv") / f"pool{form[0]}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=form[1], quoting=csv.QUOTE_ALL)
        writer.writerows([("instruction", "output"), *rows])
    assert [row for _, row in read(path)] == [{"instruction": q, "output": a} for q, a in rows]


def test_csv_lines_and_bad_rows(tmp_path: Path) -> None:
    content = (
        b'instruction,output\r\nq1,"a\r\nb"\r\n\r\nq2,a2\r\nq3\r\nq4,a,b\r\nq5,caf\xe9\r\n"q6"x,a\r\n,\r\n'
        b'q7,a7\r\nq8,"never closed\r\nq9,a9\r\n'
    )
    assert read(write(tmp_path, "pool.csv", content)) == [
        (2, {"instruction": "q1", "output": "a\r\nb"}),
        (5, {"instruction": "q2", "output": "a2"}),
        (6, "the row has 1 cells, the header has 2"),
        (7, "the row has 3 cells, the header has 2"),
        (8, "not UTF-8: byte 0xe9"),
        (9, "not valid CSV (',' expected after '\"')"),
        (10, {"instruction": "", "output": ""}),
        (11, {"instruction": "q7", "output": "a7"}),
        (12, "not valid CSV (a quote is opened here and never closed)"),
    ]


def test_csv_long_cells_leave_the_limit_of_the_csv_module_alone(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path, "pool.csv", "instruction,output\nq," + "a" * 300_000)
    assert len(read(path)[0][1]["output"]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,a\n1,2,3\n", ":1: the header has the column 'a' twice; make the names unique"),
        (b'"a,b\n1,2\n', ":1: not valid CSV (a quote is opened here"),
        (b"a,caf\xe9\n1,2\n", ":1: not UTF-8: byte 0xe9; convert the file"),
    ],
)
def test_csv_headers_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, "pool.csv", content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_parquet_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": f"q{i}"}], "n": i} for i in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    unit, found = read_file(tmp_path / "pool.parquet")
    assert unit == "row"
    assert list(found) == list(enumerate(rows, 1))


def test_parquet_that_is_none_or_cut_short(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"instruction": ["q"] * 1000, "output": [str(i) * 100 for i in range(1000)]}), tmp_path / "a.parquet"
    )
    content = (tmp_path / "a.parquet").read_bytes()
    for damaged in (b"not parquet at all", content[:-10], content[: len(content) // 2] + content[-8:]):
        path = write(tmp_path, "pool.parquet", damaged)
        with pytest.raises(DataError, match=r"pool\.parquet:row 1: not readable as Parquet \("):
            read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file; check the path"),
        ("folder.jsonl", "folder.jsonl: this is a directory; name the files in it"),
        ("pool.txt", "pool.txt: unknown extension '.txt'; use one of .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
        ("empty.jsonl", "empty.jsonl: the file is empty; name a file with at least one row"),
        ("empty.parquet", "empty.parquet: the file is empty"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    write(tmp_path, "pool.txt", "q a")
    write(tmp_path, "empty.jsonl", "")
    write(tmp_path, "empty.parquet", "")
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / name)
    assert message in str(caught.value)
