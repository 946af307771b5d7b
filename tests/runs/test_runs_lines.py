"""JSON Lines that grow: whatever a kill leaves is mended, and nothing of anybody else is touched."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import DataError
from ragalign.runs import LineFile

KEYS = ("id", "response")
# Answers may hold line ends that JSON does not escape, and half a surrogate pair.
TEXTS = st.text(st.characters() | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\ud83d"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.fixed_dictionaries({"response": TEXTS, "more": VALUES, "id": TEXTS}), min_size=1, max_size=4)


@given(rows=ROWS, data=st.data())
def test_a_file_cut_anywhere_is_mended(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        file = LineFile(path, KEYS)
        for row in rows:
            file.append(row)
        assert file.read() == rows
        content = path.read_bytes()
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        n_whole = path.read_bytes().count(b"\n")
        again = LineFile(path, KEYS)
        assert again.read() == rows[:n_whole]
        again.append(rows[0])
        assert LineFile(path, KEYS).read() == [*rows[:n_whole], rows[0]]


OURS = b'{"id": "1", "response": "a"}\n'
FOREIGN = {
    "notes without a line end": b'{"my":"notes"}',
    "the beginning of other JSON": b'{"my": "no',
    "spaces": b"  ",
    "an empty line": b"\n",
    "an empty line and spaces": b"\n   ",
    "text": b"dear diary",
    "text and a line end": b"dear diary\n",
    "binary": b"\x00\xff\x01",
    "zeros, as after a power cut": b"\x00" * 40,
    "our first key, then garbage": b'{"id": "2" and so on and on and on',
    "our first key, then a foreign end": b'{"id": "2", "response": "b"} and more text that is not ours',
    "invalid UTF-8": b'{"id": "2", "resp\xff\xfe',
    "a row without our keys": b'{"id": "2"}',
    "a line without our keys": b'{"id": "2"}\n',
    "a list": b"[1]\n",
    "deep nesting": b'{"id": "2", "response": ' + b"[" * 100_000 + b"\n",
    "deep nesting without an end": b'{"id": "2", "response": ' + b"[" * 100_000,
    "a huge number": b'{"id": "2", "response": ' + b"1" * 5000 + b"}\n",
    "Windows line ends": b'{"id": "2", "response": "b"}\r\n',
    "a byte order mark": b'\xef\xbb\xbf{"id": "2", "response": "b"}\n',
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN.keys())
@pytest.mark.parametrize("before", [b"", OURS], ids=["alone", "after ours"])
def test_foreign_content_is_refused_and_left_as_it_is(tmp_path: Path, before: bytes, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(before + content)
    for claimed in (True, False):
        file = LineFile(path, KEYS, claimed=claimed)
        for use in (file.read, file.repair, lambda file=file: file.append({"id": "9", "response": ""})):
            with pytest.raises(DataError, match=r"rows\.jsonl: line \d.* was not written by this command"):
                use()
    assert path.read_bytes() == before + content


@pytest.mark.parametrize(
    "tail", [b"{", b'{"id": "2', b'{"id": "2", "response": "a\\u00', b'{"id": "2", "response": tr']
)
def test_an_unfinished_line_alone_needs_a_claim(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(tail)
    with pytest.raises(DataError, match="not written by this command"):
        LineFile(path, KEYS, claimed=False).repair()
    assert path.read_bytes() == tail
    LineFile(path, KEYS, claimed=True).repair()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("tail", [b'{"id": "2", "note": "do not lo', b'{"id": [1], "note": 1'])
def test_an_unfinished_line_with_other_keys_is_not_ours(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(OURS + tail)
    with pytest.raises(DataError, match="line 2, which has no line break, was not written by this command"):
        LineFile(path, KEYS).repair()
    assert path.read_bytes() == OURS + tail


def test_reading_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(OURS + b'{"id": "2')
    assert LineFile(path, KEYS).read() == [json.loads(OURS)]
    assert path.read_bytes() == OURS + b'{"id": "2'


def test_trouble_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        LineFile(tmp_path, KEYS).read()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot"):
        LineFile(tmp_path / "file" / "rows.jsonl", KEYS).append({"id": "1", "response": ""})
    with pytest.raises(DataError, match="cannot write /dev/full: No space left"):
        LineFile(Path("/dev/full"), KEYS)._write(b"x\n")
