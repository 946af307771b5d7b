"""Progress of long work on stderr: a bar on a terminal, otherwise a plain line every minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Seconds between two lines when stderr is not a terminal, such as in a log file.
INTERVAL_S = 60.0

silent: ContextVar[bool] = ContextVar("silent", default=False)
"""Whether to hide all progress."""


@contextmanager
def progress(description: str, total: int | None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Show the progress of long work; the block calls the yielded function with the number of units just done."""
    if silent.get():
        yield lambda done: None
        return
    if not sys.stderr.isatty():
        yield PlainProgress(description, total, unit).advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    # Otherwise Rich sends everything printed meanwhile to the terminal, even when stdout is redirected to a file.
    bars = Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    with bars as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.update(task, advance=done)


class PlainProgress:
    """Lines such as ``generating: 1,200 of 5,000 queries (24 %), about 12 min left``.

    The first line comes after a minute; shorter work prints nothing. The time left is estimated without the first call
    of `advance`, which counts what existed already, or includes a warm-up.

    Args:
        description: the work, such as "generating".
        total: number of units; None if unknown.
        unit: the name of a unit, in the plural.
        clock: returns seconds; replaced in tests.
    """

    def __init__(
        self, description: str, total: int | None, unit: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._description, self._total, self._unit, self._clock = description, total, unit, clock
        self._started = self._shown = clock()
        self._n_done = 0
        self._first: tuple[float, int] | None = None

    def advance(self, done: int) -> None:
        """Count `done` more units, and print a line if one is due."""
        self._n_done += done
        now = self._clock()
        self._first = self._first or (now, self._n_done)
        if now - self._shown >= INTERVAL_S:
            self._shown = now
            print(self._line(now), file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        unit = f" {self._unit}" if self._unit else ""
        if not self._total:
            return f"{self._description}: {self._n_done:,}{unit} after {_duration(now - self._started)}"
        line = f"{self._description}: {self._n_done:,} of {self._total:,}{unit} ({self._n_done / self._total:.0%})"
        since, n_before = self._first or (now, self._n_done)
        if n_before < self._n_done < self._total:
            per_unit = (now - since) / (self._n_done - n_before)
            line += f", about {_duration(per_unit * (self._total - self._n_done))} left"
        return line


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
