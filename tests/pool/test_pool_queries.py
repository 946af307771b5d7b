from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.pool.queries import read_queries, unused_fields
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
        ({"text": "q"}, "no known field holds a question (text); name it with --field NAME"),
        ({}, "no known field holds a question (none)"),
        ({"instruction": " "}, "the instruction is empty; correct the row"),
        ({"instruction": None}, "the field 'instruction' is null, not text"),
        ({"instruction": "q", "input": 3}, "the field 'input' is a number, not text; name the passage's field with"),
        ({"instruction": "q", "context": {"title": "t"}}, "the field 'context' is an object, not text"),
        ({"instruction": "q\ud800"}, "the instruction contains a lone surrogate"),
        ({"instruction": "q", "context": "\ud800"}, "the instruction contains a lone surrogate"),
        ({"id": [1], "instruction": "q"}, "the field 'id' is a list, not text or a whole number"),
        ({"id": True, "instruction": "q"}, "the field 'id' is a boolean, not text or a whole number"),
        ({"id": 0.5, "instruction": "q"}, "the field 'id' is a number, not text or a whole number"),
        ({"id": "\ud800", "instruction": "q"}, "the id contains a lone surrogate"),
        ({"id": "first", "instruction": "q"}, "the id 'first' was already used in line 1; make the ids unique"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": "q"}, "the field 'messages' is text, not a list of turns"),
        ({"messages": ["q", USER]}, "the field 'messages' mixes turns of different types"),
        ({"messages": [{"role": "tool", "content": "q"}]}, "turn 1 has the unknown role 'tool'; use system, user or"),
        ({"messages": [{"role": ["user"], "content": "q"}]}, "turn 1: 'role' is a list, not text"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1: 'content' is null, not text"),
        ({"messages": [{"role": "user", "content": ""}]}, "the instruction is empty"),
        ({"messages": [{"role": "system", "content": ""}, USER]}, "the content of turn 1 is empty"),
        ({"turns": ["q", 5]}, "turn 2 of 'turns' is a number, not text"),
        ({"turns": []}, "the field 'turns' is an empty list"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "the conversation does not begin with a user's turn"),
        ({"instruction": "q", "history": [["q"]]}, "entry 1 of 'history' is not a (question, answer) pair"),
        ({"instruction": "q", "history": [["q", None]]}, "entry 1 of 'history' is not a (question, answer) pair"),
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
    with pytest.raises(DataError, match="2: the id '2' was already used in line 1"):
        read_queries(write(tmp_path, {"id": "2", "instruction": "q"}, {"instruction": "q"}))


def test_files_without_queries(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the file has no queries"):
        read_queries(write(tmp_path, "", ""))
    with pytest.raises(DataError, match="no such file"):
        read_queries(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"question": "q"}, ["user: q"]),
        ({"prompt": "q", "context": "c"}, ["user: q\nc"]),
        ({"query": "q", "passage": "c"}, ["user: q\nc"]),
        ({"query": "q", "context": ["c", "d", " ", None]}, ["user: q\nc\nd"]),
        ({"input": "q"}, ["user: q"]),
        ({"instruction": None, "question": "q", "input": float("nan"), "context": None}, ["user: q"]),
        ({"instruction": "q", "input": "i", "context": "c"}, ["user: q\ni\nc"]),
        ({"instruction": "q", "input": "c", "context": "c"}, ["user: q\nc"]),
        ({"instruction": "q", "system": "s"}, ["system: s", "user: q"]),
        ({"question": "q", "system_prompt": "s"}, ["system: s", "user: q"]),
        ({"instruction": "q", "history": [["q1", "a1"]]}, ["user: q1", "assistant: a1", "user: q"]),
        ({"instruction": "q", "history": '[["q1", "a1"]]'}, ["user: q1", "assistant: a1", "user: q"]),
        (
            {"instruction": "q", "history": [{"question": "q1", "answer": "a1"}]},
            ["user: q1", "assistant: a1", "user: q"],
        ),
        (
            {
                "instruction": "q",
                "history": [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}],
            },
            ["user: q1", "assistant: a1", "user: q"],
        ),
        ({"instruction": "q", "history": [], "system": ""}, ["user: q"]),
        ({"messages": None, "instruction": "q"}, ["user: q"]),
        ({"messages": [], "instruction": "q"}, ["user: q"]),
        ({"messages": [{"role": "human", "content": "q"}]}, ["user: q"]),
        ({"messages": [{"from": None, "value": None, "role": "user", "content": "q"}]}, ["user: q"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, ["user: q"]),
        ({"prompt": [{"role": "user", "content": "q"}]}, ["user: q"]),
        ({"conversations": [{"from": "human", "value": "q"}], "system": "s"}, ["system: s", "user: q"]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, ["user: q"]),
        ({"conversations": ["q", "a"]}, ["user: q"]),
        ({"turns": ["q"], "prompt": "p"}, ["user: q"]),
        ({"turns": [{"content": "q"}]}, ["user: q"]),
        ({"turns": 3, "prompt": "q"}, ["user: q"]),
    ],
)
def test_what_a_row_asks(tmp_path: Path, row: Any, turns: list[str]) -> None:
    [query] = read_queries(write(tmp_path, row))
    assert [f"{turn.role}: {turn.content}" for turn in query.turns] == turns


def test_later_turns_are_kept(tmp_path: Path) -> None:
    later = [read_queries(write(tmp_path, row))[0] for row in LATER]
    assert [(query.text, query.metadata) for query in later] == [("q1", {"turns": ["q2", "q3"]})] * len(LATER)
    assert unused_fields(later) == {}


LATER: list[dict[str, Any]] = [
    {"turns": ["q1", "q2", "q3"]},
    {"question_id": 3, "prompt": ["q1", "q2", "q3"]},
    {"conversations": ["q1", "a1", "q2", "a2", "q3"]},
    {
        "conversations": [
            {"from": role, "value": text}
            for role, text in zip(["human", "gpt"] * 3, ["q1", "a1", "q2", "a2", "q3", "a3"], strict=True)
        ]
    },
]


def test_fields_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, {"title": "q", "body": "c", "prompt": "p", "key": "k", "id": "kept", "context": "x"})
    [query] = read_queries(path, fields={"instruction": "title", "input": "body", "id": "key"})
    assert (query.id, query.text) == ("k", "q\nc")
    assert query.metadata == {"prompt": "p", "id": "kept", "context": "x"}
    [query] = read_queries(path, fields={"instruction": "title"}, metadata=["context"])
    assert query.text == "q"
    assert unused_fields([query], asked=["context"]) == {"body": 1, "prompt": 1, "key": 1}
    with pytest.raises(DataError, match=r"1: the row has no field 'headline' \(its fields: title, "):
        read_queries(path, fields={"instruction": "headline"})
    with pytest.raises(ConfigError, match="unknown query field 'response'"):
        read_queries(path, fields={"response": "title"})


def test_compressed_files_and_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"instruction": "q"}\n{"question": "r"}\n'
    (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(text))
    expected = [("1", "q"), ("2", "r")]
    assert [(query.id, query.text) for query in read_queries(tmp_path / "q.jsonl.gz")] == expected
    for given in (text, gzip.compress(text), b'[{"instruction": "q"},\n{"question": "r"}]'):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert [(query.id, query.text) for query in read_queries("-")] == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"text": "q"}')))
    with pytest.raises(DataError, match=r"^standard input:row 1: no known field holds a question"):
        read_queries("-")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input: the file is empty"):
        read_queries("-")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-12], lambda content: content[:20] + b"\0" * 8 + content[28:]]
)
def test_damaged_gzip(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(damage(gzip.compress(b"".join(b'{"instruction": "q%d"}\n' % n for n in range(5000)))))
    with pytest.raises(DataError, match=r"q\.jsonl\.gz: (damaged gzip file|cannot be read)"):
        read_queries(path)
