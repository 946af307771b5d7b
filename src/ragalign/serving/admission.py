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
    """Runs up to `max_running` requests and queues up to `max_waiting`, first come, first served; others get 429.

    A running or waiting request is never rejected. It can be cancelled at any time, even just when its turn comes; its
    place then goes to the next request.
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
            ApiError: 429, with an estimate of the waiting time as Retry-After.
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
            # A moving average of the time that a place is held.
            self._typical_s += 0.1 * (time.monotonic() - started - self._typical_s)
            self.n_running -= 1
            self._places.release()

    def _full(self) -> ApiError:
        wait = math.ceil(self._typical_s * (self.n_waiting + 1) / self._max_running)
        return ApiError(
            429,
            "too many requests are queued; try again later",
            code="queue_full",
            retry_after_s=min(max(wait, 1), _LONGEST_RETRY_S),
        )
