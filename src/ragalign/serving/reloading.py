"""Running a function at most once at a time, shared by all callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedRuns(Generic[T]):
    """Runs a function at most once at a time, with at most one further run pending.

    Callers during a run share the pending run, which starts when the current one has ended. So a thousand simultaneous
    calls cause two runs, and every caller gets a result that is at least as new as the call.

    Args:
        function: the function to run.
    """

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._current: asyncio.Task[T] | None = None
        self._pending: asyncio.Task[T] | None = None

    async def run(self) -> T:
        """Return the result of a run that starts now or later; cancelling the caller does not cancel the run.

        Raises:
            Exception: any exception of the function.
        """
        return await asyncio.shield(self.start())

    def start(self) -> asyncio.Task[T]:
        """The run that `run` would wait for; its exception, if any, counts as retrieved."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().create_task(self._after(self._current))
            self._pending.add_done_callback(_heard)
        return self._pending

    def cancel(self) -> None:
        """Cancel the current and the pending run."""
        for task in (self._pending, self._current):
            if task is not None:
                task.cancel()

    async def _after(self, current: asyncio.Task[T] | None) -> T:
        if current is not None:
            await asyncio.wait({current})
        self._current, self._pending = self._pending, None
        return await self._function()


def _heard(task: asyncio.Task[T]) -> None:
    if not task.cancelled():
        task.exception()
