"""A pool on disk: texts are read when a demonstration is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ragalign.errors import DataError
from ragalign.pool.pool import Pool
from ragalign.types import Demonstration

# Rows that are read for one text, and row groups that are kept.
ROW_GROUP, _GROUPS_KEPT = 2048, 64
_ID = re.compile("[0-9a-f]{16}")
# An id's 16 hexadecimal digits as a number, and the row that it is in.
ID_ROW = np.dtype([("id", "<u8"), ("row", "<i8")])


class Demonstrations(Protocol):
    """What packing needs of a pool: a `Pool`, or a `StoredPool`."""

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
    """Demonstrations in a Parquet file, of which the row groups last read are in memory.

    Unlike in a `Pool`, a demonstration can be there several times.

    Args:
        texts: a file with the columns of `Pool.table` and row groups of `ROW_GROUP` rows.
        ids: a file of `ID_ROW` records, sorted by id and row.
        fingerprint: as `Pool.fingerprint`.

    Raises:
        OSError, pyarrow.ArrowException: a file cannot be read.
    """

    def __init__(self, texts: Path, ids: Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self._file = pq.ParquetFile(texts, memory_map=True)
        self._ids: NDArray[np.void] = np.memmap(ids, dtype=ID_ROW, mode="r")
        # A Parquet reader is not safe to use from several threads.
        self._lock = Lock()
        self._read = lru_cache(_GROUPS_KEPT)(self._file.read_row_group)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __getitem__(self, position: int) -> Demonstration:
        """The demonstration at a position; reads its row group."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of {len(self):,}")
        with self._lock:
            group = self._read(position // ROW_GROUP)
        [demonstration] = Pool(group.slice(position % ROW_GROUP, 1))
        return demonstration

    def __iter__(self) -> Iterator[Demonstration]:
        for pool in self.parts():
            yield from pool

    def parts(self) -> Iterator[Pool]:
        """The pool in parts of `ROW_GROUP` demonstrations."""
        for number in range(self._file.num_row_groups):
            with self._lock:
                group = self._file.read_row_group(number)
            yield Pool(group)

    def position(self, id: str) -> int:  # noqa: A002
        """The first position of the demonstration with this id.

        Raises:
            DataError: it is not in the pool.
        """
        number = id_number(id)
        if number is not None:
            place = int(np.searchsorted(self._ids["id"], np.uint64(number)))
            if place < len(self._ids) and int(self._ids["id"][place]) == number:
                return int(self._ids["row"][place])
        raise DataError(f"this pool of {len(self):,} has no demonstration with the id {id!r}")

    def get(self, id: str) -> Demonstration:  # noqa: A002
        """The demonstration with this id; reads its row group.

        Raises:
            DataError: it is not in the pool.
        """
        return self[self.position(id)]


def id_number(id: str) -> int | None:  # noqa: A002
    """An id as a number; None if it is not an id."""
    return int(id, 16) if _ID.fullmatch(id) else None


def write_ids(path: Path, ids: Iterator[pa.ChunkedArray]) -> int:
    """Write the file of ids for columns of them, in the order of their rows; returns how many there are.

    Sorting takes 16 bytes of memory per id.
    """
    with path.open("wb") as file:
        for column in ids:
            # Each id is eight bytes, written as hexadecimal digits.
            digits = "".join(column.to_pylist())
            file.write(np.frombuffer(bytes.fromhex(digits), dtype=">u8").astype("<u8").data)
    numbers = np.fromfile(path, dtype="<u8")
    order = np.argsort(numbers, kind="stable")
    with path.open("wb") as file:
        for start in range(0, len(order), 1_000_000):
            rows = order[start : start + 1_000_000]
            records = np.empty(len(rows), dtype=ID_ROW)
            records["id"], records["row"] = numbers[rows], rows
            file.write(records.data)
    return len(order)
