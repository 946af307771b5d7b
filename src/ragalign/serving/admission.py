"""A bounded queue in front of the engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ragalign.serving.errors import ApiError

_LONGEST_RETRY_S = 60


class Admission:
    """Lets `max_running` requests run and `max_waiting` wait, first come, first served; refuses others with 429.

    A request that runs or waits is never turned away. It can be cancelled at any moment, also in the one in which its
    turn comes: its place goes to the next one.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._places = asyncio.Semaphore(max_running)
        self._typical_s = 1.0
        self.n_running = 0
        self.n_waiting = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it.

        Raises:
            ApiError: 429; Retry-After estimates when the queue will have moved on.
        """
        if self._places.locked() and self.n_waiting >= self._max_waiting:
            raise self._full()
        self.n_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.n_waiting -= 1
        self.n_running += 1
        started = time.monotonic()
        try:
            yield
        finally:
            # A moving average of how long a place is held.
            self._typical_s += 0.1 * (time.monotonic() - started - self._typical_s)
            self.n_running -= 1
            self._places.release()

    def _full(self) -> ApiError:
        wait = math.ceil(self._typical_s * (self.n_waiting + 1) / self._max_running)
        return ApiError(
            429,
            "too many requests are waiting; try again later",
            code="queue_full",
            retry_after_s=min(max(wait, 1), _LONGEST_RETRY_S),
        )
