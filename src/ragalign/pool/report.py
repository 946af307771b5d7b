"""What loading a pool did: counts per file, and every row that was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["line", "row"]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was left out. `line` counts from 1: lines of a text file, rows where there are no lines."""

    file: str
    line: int
    reason: str
    unit: Unit = "line"

    def __str__(self) -> str:
        return f"{location(self.file, self.line, self.unit)}: {self.reason}"


@dataclass(frozen=True, slots=True)
class FileReport:
    """Counts of one file or dataset.

    Attributes:
        file: the path or dataset name as it was given.
        n_rows: rows read; blank lines are no rows. ``n_rows == n_loaded + n_duplicates + len(skipped)``.
        n_loaded: rows that became a demonstration of the pool.
        n_duplicates: rows with the instruction and response of an earlier row, of this file or of one before it.
        n_multi_turn: loaded or duplicate rows whose conversation went on; see `ragalign.pool.shapes`.
        n_unwrapped: loaded or duplicate rows whose instruction was taken out of a prompt template.
        n_wrapped: loaded or duplicate rows whose instruction still is in one.
        shapes: how many rows were read in which shape.
        skipped: rows left out, in file order.
        unused: fields that are no part of a demonstration and were not asked for as metadata, where they are kept: how
            many loaded or duplicate rows have something in each.
    """

    file: str
    n_rows: int
    n_loaded: int
    n_duplicates: int
    n_multi_turn: int = 0
    n_unwrapped: int = 0
    n_wrapped: int = 0
    shapes: Mapping[str, int] = field(default_factory=dict)
    skipped: tuple[SkippedRow, ...] = ()
    unused: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Counts of everything that was read to make a pool; empty for a pool that was not loaded."""

    files: tuple[FileReport, ...] = ()

    @property
    def n_rows(self) -> int:
        """Rows read from all files."""
        return sum(file.n_rows for file in self.files)

    @property
    def n_loaded(self) -> int:
        """Rows that became a demonstration."""
        return sum(file.n_loaded for file in self.files)

    @property
    def n_duplicates(self) -> int:
        """Rows with the content of an earlier row."""
        return sum(file.n_duplicates for file in self.files)

    @property
    def skipped(self) -> tuple[SkippedRow, ...]:
        """Every row left out, with its file, line and reason."""
        return tuple(row for file in self.files for row in file.skipped)


def location(file: str, line: int, unit: Unit) -> str:
    """Where a row is, as messages say it: ``file:12`` or ``file:row 12``."""
    return f"{file}:{line}" if unit == "line" else f"{file}:row {line}"
