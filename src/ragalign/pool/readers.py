"""Reads files into rows with their places, one at a time; what a row means is not known here.

Every reader yields ``(number, row)``. The row is a dict, or a `Problem` where the row cannot be read but the next
one can. Numbers count from 1: lines of the file (the line where the row starts), or rows where a file has no lines.
A file that cannot be read on raises `DataError`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ragalign.errors import DataError
from ragalign.pool.report import Unit, location

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DOCUMENT = re.compile(rb'\{\s*"data"\s*:\s*\[')
_CSV_FIELD_LIMIT = 2**30


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row cannot be read."""

    reason: str


Rows = Iterator[tuple[int, dict[str, Any] | Problem]]

_UNITS: dict[str, Unit] = {
    ".jsonl": "line",
    ".ndjson": "line",
    ".json": "line",
    ".csv": "line",
    ".tsv": "line",
    ".parquet": "row",
}
EXTENSIONS = tuple(_UNITS)


def read_file(path: Path) -> tuple[Unit, Rows]:
    """The rows of a file, by its extension, and what their numbers count.

    Raises:
        DataError: there is no such file, it is empty or a directory, or its extension is none of `EXTENSIONS`.
            While iterating: the file cannot be read on.
    """
    if path.is_dir():
        raise DataError(f"{path}: this is a directory; name the files in it ({', '.join(EXTENSIONS)})")
    if not path.exists():
        raise DataError(f"{path}: there is no such file; check the path")
    extension = path.suffix.lower()
    if extension not in _UNITS:
        raise DataError(f"{path}: unknown extension {path.suffix!r}; use one of {', '.join(EXTENSIONS)}")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from None
    if not start:
        raise DataError(f"{path}: the file is empty; give a file with at least one row")
    if extension != ".parquet" and start.startswith(_UTF16):
        raise DataError(f"{path}: the file is UTF-16; convert it to UTF-8")
    if extension == ".parquet":
        return "row", read_parquet(path)
    if extension == ".json":
        return "line", read_json(path)
    if extension in (".csv", ".tsv"):
        return "line", read_csv(path, "," if extension == ".csv" else "\t")
    return "line", read_jsonl(path)


def read_jsonl(path: Path) -> Rows:
    """One JSON object per line; blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            content = (line.removeprefix(_BOM) if number == 1 else line).rstrip()
            if not content:
                continue
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                yield (
                    number,
                    Problem(f"not UTF-8: byte 0x{content[error.start]:02x} at byte {error.start + 1} of the line"),
                )
                continue
            yield number, _parse_object(text)


def read_json(path: Path) -> Rows:
    """A JSON array of objects, or an object that holds one under "data"; JSON Lines under a wrong name, too.

    The text is held in memory, the parsed rows are not.
    """
    if _is_json_lines(path):
        yield from read_jsonl(path)
        return
    content = path.read_bytes().removeprefix(_BOM)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # Keeps undecodable bytes as surrogates, so that only the rows that hold them are refused.
        text = content.decode(errors="surrogateescape")
    del content
    yield from _ArrayScanner(str(path), text).rows()


def read_csv(path: Path, delimiter: str) -> Rows:
    """Rows under a header, with RFC 4180 quoting; cells are text."""
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)  # the default of 128 KiB is less than a long answer
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _csv_header(path, reader)
            while True:
                number = reader.line_num + 1
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield number, Problem(_csv_reason(error))
                    continue
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield number, Problem(f"the row has {len(cells)} cells, the header has {len(header)}")
                elif (bad := _escaped_byte("".join(cells))) is not None:
                    yield number, Problem(f"not UTF-8: byte 0x{bad:02x}")
                else:
                    yield number, dict(zip(header, cells, strict=True))
    finally:
        csv.field_size_limit(limit)


def read_parquet(path: Path) -> Rows:
    """The rows of a Parquet file."""
    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{location(str(path), number + 1, 'row')}: not readable as Parquet ({reason})") from None


def _parse_object(text: str) -> dict[str, Any] | Problem:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Problem(f"not valid JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Problem(f"not valid JSON ({error})")
    return value if isinstance(value, dict) else Problem("a JSON value that is not an object")


def _is_json_lines(path: Path) -> bool:
    """Whether the first line is an object by itself that holds no list of rows."""
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(_BOM).lstrip()
        # A document may be one line of gigabytes: only look on where its start leaves it open what it is.
        if not start.startswith(b"{") or _DOCUMENT.match(start):
            return False
        file.seek(0)
        line = next((line for line in file if line.removeprefix(_BOM).strip()), b"")
    try:
        value = json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


class _ArrayScanner:
    """Walks through the rows of a JSON document, parsing one at a time and counting lines."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._decoder = json.JSONDecoder()
        self._damaged = not text.isascii() and _escaped_byte(text) is not None
        self._position = 0
        self._line = 1
        self._counted = 0

    def rows(self) -> Rows:
        """The objects of the array, or of the array under "data"."""
        start = self._peek()
        if start == "[":
            yield from self._array()
        elif start == "{":
            yield from self._document()
        else:
            raise self._error("neither an array of rows nor an object with one under 'data'")
        if self._peek():
            raise self._error("there is more text after the end of the JSON document")

    def _document(self) -> Rows:
        found = False
        self._position += 1
        while self._peek() != "}":
            key = self._value()
            if not isinstance(key, str):
                raise self._error("a key of the object is not text")
            self._expect(":")
            if key == "data" and self._peek() == "[":
                found = True
                yield from self._array()
            else:
                self._value()
            if self._peek() == ",":
                self._position += 1
            elif self._peek() != "}":
                raise self._error("expected ',' or '}'")
        self._position += 1
        if not found:
            raise DataError(f"{self._file}: the document is an object without a list of rows under 'data'; give one")

    def _array(self) -> Rows:
        self._position += 1
        if self._peek() == "]":
            self._position += 1
            return
        while True:
            self._peek()
            line, start = self._line_number(), self._position
            value = self._value()
            if self._damaged and (bad := _escaped_byte(self._text[start : self._position])) is not None:
                yield line, Problem(f"not UTF-8: byte 0x{bad:02x}")
            elif isinstance(value, dict):
                yield line, value
            else:
                yield line, Problem("a JSON value that is not an object")
            if self._peek() == "]":
                self._position += 1
                return
            self._expect(",")

    def _value(self) -> Any:
        self._peek()
        try:
            value, self._position = self._decoder.raw_decode(self._text, self._position)
        except json.JSONDecodeError as error:
            self._position = error.pos
            raise self._error(error.msg) from None
        except (ValueError, RecursionError) as error:
            raise self._error(str(error)) from None
        return value

    def _peek(self) -> str:
        """The next character that is not whitespace, or "" at the end."""
        text, position = self._text, self._position
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        self._position = position
        return text[position] if position < len(text) else ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._error(f"expected {character!r}")
        self._position += 1

    def _line_number(self) -> int:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def _error(self, reason: str) -> DataError:
        line = self._text.count("\n", 0, self._position) + 1
        return DataError(
            f"{self._file}:{line}: not valid JSON ({reason}); mend the file: rows after this place cannot be found"
        )


def _csv_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise DataError(f"{path}: the file is empty; give a file with a header and at least one row") from None
    except csv.Error as error:
        raise DataError(f"{path}:1: {_csv_reason(error)}; mend the header") from None
    if (bad := _escaped_byte("".join(header))) is not None:
        raise DataError(f"{path}:1: not UTF-8: byte 0x{bad:02x}; convert the file to UTF-8")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{path}:1: the header names the column {twice!r} twice; give each column its own name")
    return header


def _csv_reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "not valid CSV (a quote is opened here and not closed up to the end of the file)"
    return f"not valid CSV ({error})"


def _escaped_byte(text: str) -> int | None:
    """The first byte that surrogateescape kept in ``text``, if any."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return ord(text[error.start]) & 0xFF
    return None
