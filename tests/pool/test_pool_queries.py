from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragalign.errors import DataError
from ragalign.pool.queries import read_queries
from ragalign.types import Query, Turn


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "queries.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_instructions_and_messages(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"id": "one", "instruction": "q", "topic": "t"},
        {"id": 2, "instruction": "q", "input": "x"},
        "",
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]},
    )
    assert read_queries(path) == [
        Query("one", (Turn("user", "q"),), {"topic": "t"}),
        Query("2", (Turn("user", "q\nx"),), {}),
        Query("4", (Turn("system", "s"), Turn("user", "q")), {}),
    ]
    assert read_queries(str(path))[2].text == "q"


def test_the_note_s_queries(shared_data: Path) -> None:
    queries = read_queries(shared_data / "ica" / "queries.jsonl")
    assert len(queries) == 300
    assert [query.id for query in queries] == [f"lima-test-{i}" for i in range(300)]


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON (Expecting property name enclosed in double quotes at column 2); correct the row"),
        ({"text": "q"}, "there is neither 'instruction' nor 'messages' among its fields (text); name it so"),
        ({"instruction": " "}, "the instruction is empty; correct the row"),
        ({"instruction": None}, "the field 'instruction' is not text"),
        ({"instruction": "q", "input": 3}, "the field 'input' is not text"),
        ({"instruction": "q\ud800"}, "the instruction holds a lone surrogate"),
        ({"id": [1], "instruction": "q"}, "the field 'id' is neither text nor a whole number"),
        ({"id": True, "instruction": "q"}, "the field 'id' is neither text nor a whole number"),
        ({"id": "\ud800", "instruction": "q"}, "the id holds a lone surrogate"),
        ({"id": "first", "instruction": "q"}, "the id 'first' was used before, in line 1; give each query its own"),
        ({"messages": []}, "the field 'messages' is not a list with at least one message"),
        ({"messages": ["q"]}, "message 1 is not an object with 'role' and 'content'"),
        ({"messages": [{"role": "human", "content": "q"}]}, "message 1 has the role 'human'; use system, user or"),
        ({"messages": [{"role": ["user"], "content": "q"}]}, "message 1 has the role ['user']; use system, user or"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 has no text as its 'content'"),
        ({"messages": [{"role": "user", "content": ""}]}, "the content of message 1 is empty"),
        (
            {"messages": [USER, {"role": "assistant", "content": "a"}]},
            "the last message is the assistant's, not the user's",
        ),
    ],
)
def test_rows_that_are_no_queries(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path, {"id": "first", "instruction": "q"}, row)
    with pytest.raises(DataError) as caught:
        read_queries(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_a_line_number_that_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2: the id '2' was used before, in line 1"):
        read_queries(write(tmp_path, {"id": "2", "instruction": "q"}, {"instruction": "q"}))


def test_files_without_queries(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no queries in it"):
        read_queries(write(tmp_path, "", ""))
    with pytest.raises(DataError, match="there is no such file"):
        read_queries(tmp_path / "none.jsonl")
