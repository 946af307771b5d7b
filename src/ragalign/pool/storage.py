"""Saving pools as Parquet or JSON Lines, and opening saved Parquet files without parsing their rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ragalign.errors import ConfigError, DataError
from ragalign.pool.table import ROWS_AT_ONCE, SCHEMA
from ragalign.runs import replacing
from ragalign.types import content_id

_FORMAT_KEY = b"ragalign_pool"
_FORMAT_VERSION = b"1"


def save(table: pa.Table, path: Path) -> None:
    """Write the table in the format of the extension; an existing file is replaced only after a complete write.

    Raises:
        ConfigError: the extension is neither ``.parquet`` nor ``.jsonl``.
        DataError: the file cannot be written.
    """
    write = {".parquet": _write_parquet, ".jsonl": _write_jsonl}.get(path.suffix.lower())
    if write is None:
        raise ConfigError(f"{path}: unknown extension {path.suffix!r} for a pool; use .parquet or .jsonl")
    try:
        with replacing(path) as temporary:
            write(table, temporary)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); check the folder") from None


def read_saved_parquet(path: Path) -> pa.Table | None:
    """Open a Parquet file that `save` wrote; None for any other file.

    Raises:
        DataError: the file is marked as a saved pool, but is damaged.
    """
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    try:
        with pq.ParquetFile(path) as file:
            if (file.schema_arrow.metadata or {}).get(_FORMAT_KEY) != _FORMAT_VERSION:
                return None
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: not readable as Parquet ({reason}); download or save the file again") from None
    if not table.schema.equals(SCHEMA) or pc.count_distinct(table["id"]).as_py() != table.num_rows:
        raise DataError(f"{path}: marked as a saved pool, but its columns are not those of a pool; save it again")
    check_ids(table, path)
    return table.replace_schema_metadata(None)


def check_ids(table: pa.Table, path: str | Path, first_row: int = 0) -> None:
    """Check that every id is that of its texts, which an edited file forgets.

    Raises:
        DataError: one is not.
    """
    columns = (table[name].to_pylist() for name in ("id", "instruction", "response"))
    for row, (id_, instruction, response) in enumerate(zip(*columns, strict=True), first_row + 1):
        if id_ != content_id(instruction, response):
            raise DataError(
                f"{path}: row {row:,}: the id is not that of its texts; remove the column `id` and load the file again"
            )


def _write_parquet(table: pa.Table, path: Path) -> None:
    marked = table.replace_schema_metadata({_FORMAT_KEY: _FORMAT_VERSION})
    # Texts and ids are all different: dictionary encoding would make reading three times slower.
    pq.write_table(marked, path, compression="zstd", row_group_size=65_536, use_dictionary=["source", "metadata"])


def _write_jsonl(table: pa.Table, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
            for row in batch.to_pylist():
                row["metadata"] = json.loads(row["metadata"])
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
