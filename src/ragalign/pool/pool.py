"""The pool: an immutable sequence of demonstrations over an Arrow table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragalign.errors import ConfigError, DataError
from ragalign.pool import duplicates, loading, storage
from ragalign.pool.report import LoadReport
from ragalign.pool.table import ROWS_AT_ONCE, TableBuilder, check_surrogates, check_text, metadata_json
from ragalign.questions import BadRowError
from ragalign.types import Demonstration


class Pool(Sequence[Demonstration]):
    """A deduplicated collection of demonstrations in a fixed order.

    Texts stay in Arrow columns; a `Demonstration` object is created on access. Ids are unique. Pools are equal if they
    have the same demonstrations, sources and metadata in the same order.
    """

    def __init__(self, table: pa.Table, report: LoadReport | None = None) -> None:
        """Wrap a table of checked rows; use `load` or `from_demonstrations` instead."""
        self._table = table
        self._report = report or LoadReport()

    @classmethod
    def load(
        cls,
        source: str | Path | Sequence[str | Path],
        *,
        shape: str = "auto",
        fields: Mapping[str, str] | None = None,
        metadata: Collection[str] = (),
        on_error: loading.OnError = "strict",
        unwrap: bool = False,
    ) -> Pool:
        """Read files and Hugging Face datasets into one pool.

        Args:
            source: files (.jsonl, .ndjson, .json, .csv, .tsv, .parquet, each also with .gz), ``-`` for standard input,
                or dataset names (``name``, ``name:split``, ``name:config:split``). A path that exists is always a file.
            shape: ``auto`` recognises the shape of each row; see `ragalign.pool.shapes` for the others.
            fields: names of the rows' fields, such as ``{"instruction": "q", "response": "a"}``.
            metadata: fields that are never part of a demonstration. Other unused fields also go into the metadata, but
                are counted in `report`.
            on_error: ``strict`` raises at the first bad row; ``skip`` skips bad rows and lists them in `report`.
            unwrap: extract instructions from a known prompt template (Stanford Alpaca's).

        A row with the instruction and response of an earlier row is dropped and counted. A row is bad if it cannot be
        read, has no demonstration, has an empty text, a NUL or a lone surrogate, or reuses an id of the same file for
        other content. The length of texts is not limited.

        Raises:
            DataError: a source cannot be read, a row is bad (strict), or no row is left.
            ConfigError: an unknown shape, field or option.
        """
        sources = [source] if isinstance(source, str | Path) else list(source)
        table, report = loading.load(
            sources, shape=shape, fields=fields, metadata=metadata, on_error=on_error, unwrap=unwrap
        )
        return cls(table, report)

    @classmethod
    def from_demonstrations(cls, demonstrations: Iterable[Demonstration]) -> Pool:
        """Collect demonstrations, keeping the first of those with equal content.

        Raises:
            DataError: a text is empty or holds a NUL or a lone surrogate, or metadata is not JSON.
        """
        builder = TableBuilder()
        seen: set[str] = set()
        for number, demo in enumerate(demonstrations, 1):
            try:
                check_text("instruction", demo.instruction)
                check_text("response", demo.response)
                for text in (demo.source, demo.source_id or ""):
                    check_surrogates("the id or source", text)
                metadata = metadata_json(demo.metadata)
            except BadRowError as error:
                raise DataError(f"demonstration {number}: {error.reason}; correct or remove it") from None
            if demo.id not in seen:
                seen.add(demo.id)
                builder.add(demo.id, demo.instruction, demo.response, demo.source, demo.source_id, metadata)
        return cls(builder.build())

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Demonstration: ...
    @overload
    def __getitem__(self, index: slice) -> Pool: ...
    def __getitem__(self, index: int | slice) -> Demonstration | Pool:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"position {index} is outside a pool of {len(self)} demonstrations")
        return _demonstration({name: self._table[name][position].as_py() for name in _FIELDS})

    def __iter__(self) -> Iterator[Demonstration]:
        for batch in self._table.select(_FIELDS).to_batches(max_chunksize=ROWS_AT_ONCE):
            yield from map(_demonstration, batch.to_pylist())

    def __contains__(self, value: object) -> bool:
        """Whether the pool has a demonstration with this content."""
        return isinstance(value, Demonstration) and self._find(value.id) is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pool) and bool(self._table.equals(other._table))

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Pool({len(self)} demonstrations, fingerprint {self.fingerprint[:12]})"

    @property
    def table(self) -> pa.Table:
        """Columns id, instruction, response, source, source_id (nullable) and metadata (JSON), all large_string."""
        return self._table

    @property
    def report(self) -> LoadReport:
        """Counts of rows read and skipped when the pool, or the one it was derived from, was loaded."""
        return self._report

    @cached_property
    def ids(self) -> list[str]:
        """The ids, in order."""
        return self._table["id"].to_pylist()  # type: ignore[no-any-return]

    @property
    def instructions(self) -> list[str]:
        """The instructions, in order. A new list each time, since keeping it would double the pool's memory."""
        return self._table["instruction"].to_pylist()  # type: ignore[no-any-return]

    @property
    def responses(self) -> list[str]:
        """The responses, in order. A new list each time."""
        return self._table["response"].to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the ids, one per line, in order; equal for equal texts from any source."""
        digest = hashlib.sha256()
        for batch in self._table.select(["id"]).to_batches(max_chunksize=65_536):
            digest.update("".join(f"{key}\n" for key in batch.column(0).to_pylist()).encode())
        return digest.hexdigest()

    def position(self, id: str) -> int:  # noqa: A002
        """The position of the demonstration with this id.

        Raises:
            DataError: it is not in the pool.
        """
        found = self._find(id)
        if found is None:
            raise DataError(f"this pool of {len(self)} has no demonstration with the id {id!r}; pool.ids lists all ids")
        return found

    def get(self, id: str) -> Demonstration:  # noqa: A002
        """The demonstration with this id.

        Raises:
            DataError: it is not in the pool.
        """
        return self[self.position(id)]

    def take(self, positions: Sequence[int] | NDArray[np.int64]) -> Pool:
        """The demonstrations at these positions, in this order.

        Raises:
            IndexError: a position is outside the pool.
            DataError: a position occurs twice.
            ConfigError: positions are not whole numbers.
        """
        given = np.asarray(positions)
        if given.size and given.dtype.kind not in "iu":
            raise ConfigError(f"positions must be whole numbers, not {given.dtype}; convert a mask with np.flatnonzero")
        chosen = given.astype(np.int64)
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if outside.size:
            raise IndexError(f"position {outside[0]} is outside a pool of {len(self)} demonstrations")
        if np.unique(chosen).size < chosen.size:
            raise DataError("a position occurs twice, but a pool has each demonstration once")
        return Pool(self._table.take(pa.array(chosen)), self._report)

    def union(self, other: Pool) -> Pool:
        """Join two pools: this pool, followed by the demonstrations that only ``other`` has."""
        new = [position for position, key in enumerate(other.ids) if self._find(key) is None]
        report = LoadReport(self._report.files + other.report.files)
        return Pool(pa.concat_tables([self._table, other.take(new).table]), report)

    def without(self, ids: Iterable[str]) -> Pool:
        """The pool without these demonstrations.

        Raises:
            DataError: an id is not in the pool.
        """
        keep = np.ones(len(self), dtype=bool)
        for key in ids:
            keep[self.position(key)] = False
        return Pool(self._table.filter(pa.array(keep)), self._report)

    def duplicates(self, near: float | None = None) -> tuple[duplicates.Duplicate, ...]:
        """Demonstrations that repeat the instruction of an earlier one; `deduplicate` removes them.

        Args:
            near: also report instructions at least this similar to a kept one, in (0, 1]: Jaccard similarity of the
                sets of character 5-grams of the normalised texts, computed exactly.

        Raises:
            ConfigError: ``near`` is outside (0, 1].
        """
        return duplicates.find_duplicates(self.ids, self._table["instruction"], near)

    def deduplicate(self, near: float | None = None) -> Pool:
        """The pool without its `duplicates`; the first occurrence is kept."""
        return self.without(duplicate.id for duplicate in self.duplicates(near))

    def save(self, path: str | Path) -> None:
        """Write the pool to a ``.parquet`` or ``.jsonl`` file; `load` restores an equal pool.

        Raises:
            ConfigError: the extension is another one.
            DataError: the file cannot be written.
        """
        storage.save(self._table, Path(path))

    @cached_property
    def _sorted_ids(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        # Two flat arrays take a tenth of the memory of a dict with a million ids.
        keys = np.array(self._table["id"].to_pylist(), dtype="S16")
        order = np.argsort(keys)
        return keys[order], order

    def _find(self, id: str) -> int | None:  # noqa: A002
        keys, order = self._sorted_ids
        key = id.encode("utf-8", "replace")
        at = int(np.searchsorted(keys, key))
        return int(order[at]) if at < len(keys) and keys[at] == key else None


_FIELDS = ["instruction", "response", "source", "source_id", "metadata"]


def _demonstration(row: Mapping[str, str]) -> Demonstration:
    return Demonstration(**{**row, "metadata": json.loads(row["metadata"])})
