"""Rows of JSON and JSON Lines files: read with the position of each bad row, and written atomically."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ragalign._parsing import parse_json
from ragalign._sources import Source
from ragalign.errors import DataError
from ragalign.runs.writing import write_lines, write_text
from ragalign.text import valid_values


@dataclass(frozen=True, slots=True)
class FileRow:
    """A row of a file: its value, or why it cannot be read.

    Attributes:
        position: the row's index, from 0.
        where: file and line (or entry), for messages.
    """

    position: int
    where: str
    value: Mapping[str, Any] | None = None
    problem: str | None = None


def read_rows(path: str | Path) -> list[FileRow]:
    """Read all rows of a JSON array or a JSON Lines file, plain or gzipped; the first character decides which.

    A line or entry that is not a JSON object becomes a row with a problem, so that all rows are counted. A lone
    surrogate, which byte-level models can write, becomes U+FFFD.

    Raises:
        DataError: the file cannot be read, has no rows, or is an incomplete JSON array.
    """
    try:
        text = Source.of(path).read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert the file") from None
    if not text.strip():
        raise DataError(f"{path} is empty")
    if text.lstrip().startswith("["):
        return _array(path, text)
    # Split at \n only: other Unicode line breaks can occur inside strings.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [_line(position, f"{path} line {number}", line) for position, (number, line) in enumerate(lines)]


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], form: Literal["json", "jsonl"]) -> None:
    """Write a JSON array or JSON Lines atomically.

    Raises:
        OSError: the folder cannot be written to.
    """
    if form == "json":
        write_text(Path(path), json.dumps(list(rows), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    else:
        write_lines(Path(path), rows)


def _array(path: str | Path, text: str) -> list[FileRow]:
    try:
        values = valid_values(parse_json(text))
    except ValueError as error:
        reason = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{path} is a JSON array that cannot be read: {reason}") from None
    if not isinstance(values, list):
        raise DataError(f"{path} is not a JSON array")
    if not values:
        raise DataError(f"{path} is an empty JSON array")
    return [
        FileRow(position, f"{path} entry {position + 1}", value)
        if isinstance(value, dict)
        else FileRow(position, f"{path} entry {position + 1}", problem="not a JSON object")
        for position, value in enumerate(values)
    ]


def _line(position: int, where: str, line: str) -> FileRow:
    try:
        value = valid_values(parse_json(line))
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        return FileRow(position, where, problem=f"not JSON: {reason}")
    if not isinstance(value, dict):
        return FileRow(position, where, problem="not a JSON object")
    return FileRow(position, where, value)
