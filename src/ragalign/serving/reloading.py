"""Running one thing at a time, however often it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedRuns(Generic[T]):
    """Runs a function at most once at a time, with at most one further run pending.

    Those who ask while a run is under way share the pending one, which begins when that run has ended. So a thousand
    requests in a row make two runs, and each sees what was there when it was asked for.

    Args:
        function: what to run.
    """

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self._function = function
        self._current: asyncio.Task[T] | None = None
        self._pending: asyncio.Task[T] | None = None

    async def run(self) -> T:
        """The result of a run that begins now or later; whoever stops waiting does not stop the run.

        Raises:
            Exception: what the function raised.
        """
        return await asyncio.shield(self.start())

    def start(self) -> asyncio.Task[T]:
        """The run that `run` would wait for; its error, if any, is not reported as unheard."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().create_task(self._after(self._current))
            self._pending.add_done_callback(_heard)
        return self._pending

    def cancel(self) -> None:
        """Cancel what runs and what is pending."""
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
