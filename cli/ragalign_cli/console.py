"""Output shared by all commands: results on stdout, notes, warnings and errors on stderr."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# Columns of tables in files and pipes.
_PIPED_WIDTH = 160

_quiet = ContextVar("quiet", default=False)


def stdout() -> Console:
    """A console for results; colour only on a terminal."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    # Rich takes a pipe for a terminal of 80 columns, which would cut tables.
    width = _PIPED_WIDTH if piped and "COLUMNS" not in os.environ else None
    return Console(highlight=False, soft_wrap=piped, width=width)


def stderr() -> Console:
    """A console for progress, warnings and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON document on one line, so that repeated calls give JSON Lines. NaN and infinities become null."""
    sys.stdout.write(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False) + "\n")


def be_quiet(quiet: bool) -> None:
    """Turn notes and progress bars off (or on) for the rest of the command."""
    from ragalign._progress import silent

    _quiet.set(quiet)
    silent.set(quiet)


def note(message: str) -> None:
    """Print a line on stderr that is not a result, such as a count or a next step."""
    if not _quiet.get():
        stderr().print(message, markup=False)


def heading(text: str) -> None:
    """Print an empty line and a bold one on stdout."""
    stdout().print(f"\n[bold]{_escape(text)}[/bold]")


def warning(message: str) -> None:
    """Print a warning as one line on stderr."""
    stderr().print(f"[bold yellow]warning:[/bold yellow] {_escape(' '.join(message.split()))}")


class LogWarnings(logging.Handler):
    """Prints the library's log records from WARNING up; the service has its own log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if not record.name.startswith("ragalign.serving"):
            warning(record.getMessage())


def error(message: str) -> None:
    """Print an error as one line on stderr."""
    line = " ".join(message.split())
    stderr().print(f"[bold red]error:[/bold red] {_escape(line)}")


class LogNotes(logging.Handler):
    """Prints the library's INFO records as notes; `LogWarnings` prints higher levels."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        if record.levelno == logging.INFO:
            note(record.getMessage())


def print_table(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print an aligned table on stdout. Each column is (heading, "left" or "right")."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.show_header = any(heading for heading, _ in columns)
    for heading, justify in columns:
        table.add_column(heading, justify="right" if justify == "right" else "left")
    for row in rows:
        table.add_row(*(_escape(str(cell)) for cell in row))
    stdout().print(table)


def shortened(text: str, width: int) -> str:
    """`text` on one line of at most `width` terminal cells, without control characters."""
    from rich.cells import cell_len, set_cell_size

    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return line if cell_len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, with None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
