"""A pool on disk: texts are read when a demonstration is asked for.

They are in an Arrow IPC file of small compressed batches. Its footer takes 24 bytes a batch, and is mapped; a Parquet
file's takes 360 bytes a row group even without statistics, and is parsed before the first text can be read.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragalign.errors import DataError, IndexFormatError
from ragalign.pool.pool import Pool
from ragalign.pool.table import SCHEMA
from ragalign.types import Demonstration

# Rows that are read for one text. With answers of 1,500 characters, as in benchmarks/disk_index.py, a first read takes
# 0.2 ms; with 512 rows 0.7 ms and with 2,048 rows 2.4 ms, for files that are 7 % smaller.
BATCH_ROWS = 64
# Bytes of recently read batches to keep, uncompressed: about 300 batches of such answers.
_KEPT_BYTES = 32 << 20
_ID = re.compile("[0-9a-f]{16}")
# An id's 16 hexadecimal digits as a number, and the row that it is in.
ID_ROW = np.dtype([("id", "<u8"), ("row", "<i8")])


class Demonstrations(Protocol):
    """A pool as packing needs it: a `Pool`, or a `StoredPool`."""

    @property
    def fingerprint(self) -> str:
        """See `Pool.fingerprint`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Demonstration]: ...

    def get(self, id: str, /) -> Demonstration:  # noqa: A002
        """The demonstration with this id.

        Raises:
            DataError: it is not in the pool.
        """


class StoredPool:
    """Demonstrations in an Arrow file, of which the batches last read are in memory, up to 32 MB of them.

    Unlike in a `Pool`, a demonstration can be there several times.

    Args:
        texts: a file that `writing_texts` wrote.
        ids: a file of `ID_ROW` records, sorted by id and row.
        fingerprint: as `Pool.fingerprint`.

    Raises:
        OSError, ValueError: a file cannot be read, or the two do not belong together.
    """

    def __init__(self, texts: Path, ids: Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._path = texts
        # One batch is too little for several threads.
        self._file = pa.ipc.open_file(pa.memory_map(str(texts)), options=pa.ipc.IpcReadOptions(use_threads=False))
        self._ids: NDArray[np.void] = np.memmap(ids, dtype=ID_ROW, mode="r")
        if self._file.schema != SCHEMA or self._file.num_record_batches != -(-len(self) // BATCH_ROWS):
            raise ValueError(f"{texts.name} does not hold the texts of the {len(self):,} ids")
        # A reader is not safe to use from several threads.
        self._lock = Lock()
        self._kept: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, position: int) -> Demonstration:
        """The demonstration at a position; reads its batch.

        Raises:
            IndexError: there is no such position.
            IndexFormatError: the file is damaged.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self):,}")
        with self._lock:
            batch = self._batch(position // BATCH_ROWS)
        pool = Pool(pa.Table.from_batches([batch.slice(position % BATCH_ROWS, 1)]))
        try:
            demonstration = pool[0]
        except ValueError as error:  # metadata that is not JSON
            raise self._damaged(f"row {position + 1:,}: {error}") from None
        if pool.ids != [demonstration.id]:
            raise self._damaged(f"the id of row {position + 1:,} is not that of its texts")
        return demonstration

    def __iter__(self) -> Iterator[Demonstration]:
        for pool in self.parts():
            yield from pool

    def parts(self) -> Iterator[Pool]:
        """The pool in parts of `BATCH_ROWS` demonstrations.

        Raises:
            IndexFormatError: the file is damaged.
        """
        for number in range(self._file.num_record_batches):
            with self._lock:
                batch = self._read(number)
            yield Pool(pa.Table.from_batches([batch]))

    def position(self, id: str) -> int:  # noqa: A002
        """The first position of the demonstration with this id.

        Raises:
            DataError: it is not in the pool.
        """
        if _ID.fullmatch(id):
            [number] = id_numbers([id])
            place = int(np.searchsorted(self._ids["id"], number))
            if place < len(self._ids) and self._ids["id"][place] == number:
                return int(self._ids["row"][place])
        raise DataError(f"this pool of {len(self):,} has no demonstration with the id {id!r}")

    def get(self, id: str) -> Demonstration:  # noqa: A002
        """The demonstration with this id; reads its batch.

        Raises:
            DataError: it is not in the pool.
            IndexFormatError: the file is damaged.
        """
        return self[self.position(id)]

    def _batch(self, number: int) -> pa.RecordBatch:
        """A batch, from memory if it was read lately."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        self._kept[number] = batch = self._read(number)
        self._kept_bytes += batch.nbytes
        while self._kept_bytes > _KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return batch

    def _read(self, number: int) -> pa.RecordBatch:
        try:
            batch = self._file.get_batch(number)
            batch.validate(full=True)  # Arrow trusts the offsets of a file
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(" ".join(str(error).split())) from None
        if len(batch) != min(BATCH_ROWS, len(self) - number * BATCH_ROWS):
            raise self._damaged(f"batch {number:,} has {len(batch)} rows")
        return batch

    def _damaged(self, reason: str) -> IndexFormatError:
        return IndexFormatError(f"{self._path} is damaged: {reason}; build the index again")


@contextmanager
def writing_texts(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A function that appends tables like `Pool.table` to a new file, in batches of `BATCH_ROWS` rows but the last.

    Raises:
        OSError: the file cannot be written.
    """
    waiting = SCHEMA.empty_table()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA, options=options) as writer:

        def write(table: pa.Table) -> None:
            nonlocal waiting
            joined = pa.concat_tables([waiting, table.replace_schema_metadata(None)]).combine_chunks()
            end = len(joined) // BATCH_ROWS * BATCH_ROWS
            if end:
                writer.write_table(joined.slice(0, end), max_chunksize=BATCH_ROWS)
            waiting = joined.slice(end)

        yield write
        if len(waiting):
            writer.write_table(waiting)


def id_numbers(ids: Iterable[str]) -> NDArray[np.uint64]:
    """Ids as numbers, ``<u8``; each is 16 hexadecimal digits."""
    return np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8").astype("<u8")


def sort_ids(path: Path) -> None:
    """Turn a file of `id_numbers`, in the order of their rows, into one of `ID_ROW` records, sorted by id and row.

    Takes 20 bytes of memory per id: the number, its row, and half as much again for sorting the rows.

    Raises:
        OSError: the file cannot be written.
    """
    numbers = np.fromfile(path, dtype="<u8")
    order = np.argsort(numbers, kind="stable")
    with path.open("wb") as file:
        for start in range(0, len(order), 1_000_000):
            rows = order[start : start + 1_000_000]
            records = np.empty(len(rows), dtype=ID_ROW)
            records["id"], records["row"] = numbers[rows], rows
            file.write(records.data)
