"""The report of loading a pool: counts per file, and all skipped rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Unit = Literal["line", "row"]


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that was skipped. `line` counts from 1: lines, or rows in formats without lines."""

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
        n_rows: rows read, without blank lines. ``n_rows == n_loaded + n_duplicates + len(skipped)``.
        n_loaded: rows that became a demonstration of the pool.
        n_duplicates: rows with the instruction and response of an earlier row of this or an earlier file.
        n_multi_turn: loaded or duplicate rows with more turns than a demonstration; see `ragalign.pool.shapes`.
        n_unwrapped: loaded or duplicate rows whose instruction was extracted from a prompt template.
        n_wrapped: loaded or duplicate rows whose instruction is still in a prompt template.
        shapes: number of rows by shape.
        skipped: skipped rows, in file order.
        unused: fields that are not part of a demonstration and were not declared as metadata (they are kept there): for
            each, the number of loaded or duplicate rows with a value in it.
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
    """Counts of all files that a pool was loaded from; empty if the pool was not loaded."""

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
        """Rows that repeat an earlier row."""
        return sum(file.n_duplicates for file in self.files)

    @property
    def skipped(self) -> tuple[SkippedRow, ...]:
        """Every skipped row, with its file, line and reason."""
        return tuple(row for file in self.files for row in file.skipped)


def location(file: str, line: int, unit: Unit) -> str:
    """The location of a row for messages: ``file:12`` or ``file:row 12``."""
    return f"{file}:{line}" if unit == "line" else f"{file}:row {line}"
