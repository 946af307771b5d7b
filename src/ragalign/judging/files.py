"""Rows of JSON and JSON Lines files: read with the place of every bad one, written atomically."""

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
class Row:
    """One row of a file: its value, or the problem that keeps it from being read.

    Attributes:
        position: its place among the rows, from 0.
        where: file and line (or entry), for messages.
    """

    position: int
    where: str
    value: Mapping[str, Any] | None = None
    problem: str | None = None


def read_rows(path: str | Path) -> list[Row]:
    """All rows of a JSON array or of a JSON Lines file, plain or compressed with gzip; its first character says which.

    A line or entry that is no JSON object is a row with a problem, so that nothing is lost. Half a surrogate pair, as
    byte-level models write them, is U+FFFD.

    Raises:
        DataError: the file cannot be read, has no rows, or is a JSON array that breaks off.
    """
    try:
        text = Source.of(path).read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; convert the file") from None
    if not text.strip():
        raise DataError(f"{path} is empty")
    if text.lstrip().startswith("["):
        return _array(path, text)
    # Only \n ends a line: other Unicode line breaks may stand inside strings.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [_line(position, f"{path} line {number}", line) for position, (number, line) in enumerate(lines)]


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]], form: Literal["json", "jsonl"]) -> None:
    """Write a JSON array or JSON Lines; the file is complete or not there at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    if form == "json":
        write_text(Path(path), json.dumps(list(rows), ensure_ascii=False, indent=2, allow_nan=False) + "\n")
    else:
        write_lines(Path(path), rows)


def _array(path: str | Path, text: str) -> list[Row]:
    try:
        values = valid_values(parse_json(text))
    except ValueError as error:
        reason = f"line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise DataError(f"{path} is a JSON array that cannot be read: {reason}") from None
    if not isinstance(values, list):
        raise DataError(f"{path} holds no JSON array")
    if not values:
        raise DataError(f"{path} is an empty JSON array")
    return [
        Row(position, f"{path} entry {position + 1}", value)
        if isinstance(value, dict)
        else Row(position, f"{path} entry {position + 1}", problem="no JSON object")
        for position, value in enumerate(values)
    ]


def _line(position: int, where: str, line: str) -> Row:
    try:
        value = valid_values(parse_json(line))
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        return Row(position, where, problem=f"no JSON: {reason}")
    if not isinstance(value, dict):
        return Row(position, where, problem="no JSON object")
    return Row(position, where, value)
