"""A bounded queue in front of the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ragalign.serving.errors import ApiError

_LONGEST_RETRY_S = 60


class Admission:
    """Lets `max_running` requests work and `max_waiting` wait, first come, first served; refuses others with 429.

    Who has been let in, or waits, is never turned away.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.n_running = 0
        self._typical_s = 1.0

    @property
    def n_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises:
            ApiError: 429; Retry-After is about when the queue will have moved on.
        """
        await self._enter()
        started = time.monotonic()
        try:
            yield
        finally:
            # A moving average of how long a place is held.
            self._typical_s += 0.1 * (time.monotonic() - started - self._typical_s)
            self._leave()

    async def _enter(self) -> None:
        if self.n_running < self._max_running and not self._waiting:
            self.n_running += 1
            return
        if len(self._waiting) >= self._max_waiting:
            wait = math.ceil(self._typical_s * (len(self._waiting) + 1) / self._max_running)
            raise ApiError(
                429,
                "too many requests are waiting; try again later",
                code="queue_full",
                retry_after_s=min(max(wait, 1), _LONGEST_RETRY_S),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # the one who leaves hands the place over
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._leave()
            else:
                self._waiting.remove(turn)
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.n_running -= 1
