"""The Arrow table of a pool: its columns, checks of their values, and a builder with low memory use."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

from ragalign.questions import BadRowError

# large_string: a column can have more than 2 GB of text.
SCHEMA = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("instruction", pa.large_string(), nullable=False),
        pa.field("response", pa.large_string(), nullable=False),
        pa.field("source", pa.large_string(), nullable=False),
        pa.field("source_id", pa.large_string()),
        pa.field("metadata", pa.large_string(), nullable=False),
    ]
)
ROWS_AT_ONCE = 64  # rows converted to Python objects at once; a row can have megabytes
_CHUNK_ROWS = 16_384
_CHUNK_CHARACTERS = 16_000_000


class TableBuilder:
    """Collects demonstrations as Arrow chunks, with Python objects for one chunk at a time."""

    def __init__(self) -> None:
        self._chunks: list[pa.RecordBatch] = []
        self._rows: list[tuple[str, str, str, str, str | None, str]] = []
        self._n_characters = 0

    def add(self, id: str, instruction: str, response: str, source: str, source_id: str | None, metadata: str) -> None:  # noqa: A002
        """Append one demonstration, whose texts have passed `check_text`."""
        self._rows.append((id, instruction, response, source, source_id, metadata))
        self._n_characters += len(instruction) + len(response) + len(metadata)
        if len(self._rows) >= _CHUNK_ROWS or self._n_characters >= _CHUNK_CHARACTERS:
            self._flush()

    def build(self) -> pa.Table:
        """The table with all added rows, in order."""
        self._flush()
        return pa.Table.from_batches(self._chunks, schema=SCHEMA)

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(column, type=field.type)
                for column, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
            ]
            self._chunks.append(pa.record_batch(columns, schema=SCHEMA))
            self._rows = []
            self._n_characters = 0


def check_text(name: str, text: str) -> None:
    """Reject a text that a demonstration must not have.

    Raises:
        BadRowError: the text is empty or only whitespace, or contains a NUL character or a lone surrogate, both of
            which are signs of damage.
    """
    if not text or text.isspace():
        raise BadRowError(f"the {name} is empty")
    if "\0" in text:
        raise BadRowError(f"the {name} contains a NUL character (U+0000) at character {text.index(chr(0)) + 1}")
    check_surrogates(f"the {name}", text)


def check_surrogates(what: str, text: str) -> None:
    """Reject lone surrogates, which UTF-8 cannot encode.

    Raises:
        BadRowError: a lone surrogate; the message has its position, counted in characters from 1.
    """
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise BadRowError(f"{what} contains a lone surrogate (U+{code:04X}) at character {error.start + 1}") from None


def metadata_json(metadata: Mapping[str, Any]) -> str:
    """Metadata as a JSON object. Dates become ISO 8601 text, decimals and UUIDs text, NaN and infinities null.

    Raises:
        BadRowError: a value that JSON cannot represent, or a lone surrogate.
    """
    if not metadata:
        return "{}"
    try:
        try:
            text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, default=_json_value)
        except ValueError:
            text = json.dumps(_finite(dict(metadata)), ensure_ascii=False, allow_nan=False, default=_json_value)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRowError(f"the metadata cannot be written as JSON ({error})") from None
    check_surrogates("the metadata", text)
    return text


def _json_value(value: object) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
