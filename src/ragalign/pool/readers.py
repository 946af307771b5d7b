"""Reading files as rows with line or row numbers, one at a time, without interpreting the rows.

Every reader yields ``(number, row)``. The row is a dict, or a `Problem` if this row cannot be read but the next can.
Numbers count from 1: the line where the row starts, or the row if the format has no lines. `DataError` is raised if
the rest of the file cannot be read.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ragalign._sources import Source
from ragalign.errors import DataError
from ragalign.pool.json_array import JsonArray
from ragalign.pool.report import Unit, location
from ragalign.pool.rows import Problem, Rows, escaped_byte

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_DOCUMENT = re.compile(rb'\{\s*"data"\s*:\s*\[')
_CSV_FIELD_LIMIT = 2**30
_PARQUET_ROWS = 128  # few, since a row can have megabytes


_UNITS: dict[str, Unit] = {
    ".jsonl": "line",
    ".ndjson": "line",
    ".json": "line",  # or "row", see `_json_unit`
    ".csv": "line",
    ".tsv": "line",
    ".parquet": "row",
}
EXTENSIONS = tuple(_UNITS)


def exists(path: Path) -> bool:
    """Whether ``path`` exists.

    Raises:
        DataError: it cannot be checked: a folder without permission, a name that is too long.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path}: cannot be accessed ({error.strerror}); check the path") from None


def read_file(path: str | Path) -> tuple[Unit, Rows]:
    """Read the rows of a file by its extension; returns the unit that their numbers count, and the rows.

    Files can be gzip-compressed (``.jsonl.gz``). ``-`` is standard input: JSON Lines or a JSON array.

    Raises:
        DataError: the file does not exist, is empty or a directory, or its extension is not in `EXTENSIONS`; while
            iterating, the rest of the file cannot be read.
    """
    source = Source.of(path)
    if source.path is not None:
        if not exists(source.path):
            raise DataError(f"{path}: no such file; check the path")
        if source.path.is_dir():
            raise DataError(f"{path}: this is a directory; name the files in it ({', '.join(EXTENSIONS)})")
    extension = source.extension
    if extension not in _UNITS:
        raise DataError(f"{path}: unknown extension {Path(path).suffix!r}; use one of {', '.join(EXTENSIONS)}, or .gz")
    with source.open() as file:
        start = file.read(4)
    if not start:
        raise DataError(f"{source.name}: the file is empty; name a file with at least one row")
    if extension != ".parquet" and start.startswith(_UTF16):
        raise DataError(f"{source.name}: the file is UTF-16; convert it to UTF-8")
    if extension == ".parquet":
        return "row", read_parquet(source)
    if extension == ".json":
        unit = _json_unit(source)
        return unit, read_json(source, unit)
    if extension in (".csv", ".tsv"):
        return "line", read_csv(source, "," if extension == ".csv" else "\t")
    return "line", read_jsonl(source)


def read_jsonl(source: Source) -> Rows:
    """Read one JSON object per line, skipping blank lines."""
    with source.open() as file:
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


def read_json(source: Source, unit: Unit = "line") -> Rows:
    """Read a JSON array of objects, or an object with such an array under "data"; also accepts JSON Lines.

    The text is kept in memory, the parsed rows are not.
    """
    if _is_json_lines(source):
        yield from read_jsonl(source)
        return
    content = source.read().removeprefix(_BOM)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        # Undecodable bytes become surrogates, so that only the rows that contain them are rejected.
        text = content.decode(errors="surrogateescape")
    del content
    yield from JsonArray(source.name, text, unit).rows()


def read_csv(source: Source, delimiter: str) -> Rows:
    """Read rows under a header, with RFC 4180 quoting; cells are text."""
    limit = csv.field_size_limit(_CSV_FIELD_LIMIT)  # the default of 128 KiB is too small for long answers
    try:
        with (
            source.open() as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = _csv_header(source.name, reader)
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
                elif (bad := escaped_byte("".join(cells))) is not None:
                    yield number, Problem(f"not UTF-8: byte 0x{bad:02x}")
                else:
                    yield number, dict(zip(header, cells, strict=True))
    finally:
        csv.field_size_limit(limit)


def read_parquet(source: Source) -> Rows:
    """Read the rows of a Parquet file."""
    number = 0
    with source.open() as binary:
        try:
            with pq.ParquetFile(binary) as file:
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0]
            raise DataError(f"{location(source.name, number + 1, 'row')}: not readable as Parquet ({reason})") from None


def _parse_object(text: str) -> dict[str, Any] | Problem:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Problem(f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno})")
    except (ValueError, RecursionError) as error:
        return Problem(f"not valid JSON ({error})")
    return value if isinstance(value, dict) else Problem("a JSON value that is not an object")


def _json_unit(source: Source) -> Unit:
    """The unit for row numbers: "row" if the whole document is one line, else "line"."""
    with source.open() as file:
        lines = (line for line in file if line.strip())
        next(lines, None)
        return "row" if next(lines, None) is None else "line"


def _is_json_lines(source: Source) -> bool:
    """Whether the first line is a complete object without an array of rows."""
    with source.open() as file:
        start = file.read(1024).removeprefix(_BOM).lstrip()
        # The document can be one line of gigabytes: read on only while its start is ambiguous.
        if not start.startswith(b"{") or _DOCUMENT.match(start):
            return False
        file.seek(0)
        line = next((line for line in file if line.removeprefix(_BOM).strip()), b"")
    try:
        value = json.loads(line.removeprefix(_BOM))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _csv_header(name: str, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [cell.strip() for cell in next(reader)]
    except StopIteration:
        raise DataError(f"{name}: the file is empty; name a file with a header and at least one row") from None
    except csv.Error as error:
        raise DataError(f"{name}:1: {_csv_reason(error)}; correct the header") from None
    if (bad := escaped_byte("".join(header))) is not None:
        raise DataError(f"{name}:1: not UTF-8: byte 0x{bad:02x}; convert the file to UTF-8")
    if len(set(header)) < len(header):
        twice = next(cell for cell in header if header.count(cell) > 1)
        raise DataError(f"{name}:1: the header has the column {twice!r} twice; make the names unique")
    return header


def _csv_reason(error: csv.Error) -> str:
    if "unexpected end of data" in str(error):
        return "not valid CSV (a quote is opened here and never closed)"
    return f"not valid CSV ({error})"
