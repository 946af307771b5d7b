"""Batches of demonstrations with their vectors, of which one is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ragalign.encoders import Encoder
from ragalign.errors import DataError
from ragalign.indexes.disk_writing import Batch
from ragalign.indexes.encoding import texts_of
from ragalign.indexes.manifest import TextForm
from ragalign.pool import Pool
from ragalign.pool.storage import check_ids

_ROWS = 50_000


def encoded(
    pools: Iterable[Pool], encoder: Encoder, *, text: TextForm = "instruction", rows: int = _ROWS
) -> Iterator[Batch]:
    """Encode pools for `ragalign.indexes.on_disk.DiskIndex.build`.

    Args:
        pools: one is read at a time.
        encoder: makes the vectors.
        text: the texts to encode: the ``instruction``, or ``both`` instruction and response.
        rows: demonstrations per batch.
    """
    for pool in pools:
        for start in range(0, len(pool), rows):
            part = pool[start : start + rows]
            yield part, np.ascontiguousarray(encoder.encode(texts_of(part, text), kind="document"), dtype=np.float32)


def stored_pools(paths: Sequence[str | Path], *, rows: int = _ROWS) -> Iterator[Pool]:
    """Parts of Parquet files that `Pool.save` wrote.

    Args:
        paths: the files.
        rows: demonstrations per part.

    Raises:
        DataError: a file cannot be read, has other columns, or an id is not that of its texts.
    """
    for path in paths:
        if n_stored(path) is None:
            raise DataError(f"{path} is not a Parquet file with the columns of a pool; write one with Pool.save")
        with pq.ParquetFile(path) as file:
            n_before = 0
            for batch in file.iter_batches(batch_size=rows):
                table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                check_ids(table, path, n_before)
                n_before += len(table)
                yield Pool(table)


def n_stored(path: str | Path) -> int | None:
    """The number of rows of a file that `Pool.save` wrote as Parquet, by its columns; None for another file."""
    try:
        with pq.ParquetFile(path) as file:
            schema, n = file.schema_arrow, int(file.metadata.num_rows)
    except (OSError, pa.ArrowException):
        return None
    return n if schema.remove_metadata() == Pool.from_demonstrations([]).table.schema.remove_metadata() else None
