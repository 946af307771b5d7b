"""A limit on tokens per minute with a sliding window."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ragalign.errors import ConfigError

_WINDOW_S = 60.0


@dataclass(slots=True)
class Grant:
    """Tokens reserved for a request; `n_tokens` is corrected once the reply reports its usage."""

    at: float
    n_tokens: int


class TokenWindow:
    """Delays requests so that any 60 seconds have at most `tokens_per_minute` tokens, in order of arrival.

    A request larger than the limit is sent alone.
    """

    def __init__(self, tokens_per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        if tokens_per_minute is not None and tokens_per_minute < 1:
            raise ConfigError(f"tokens per minute must be at least 1, not {tokens_per_minute}")
        self._limit = tokens_per_minute
        self._clock = clock
        self._grants: deque[Grant] = deque()
        self._used = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    async def acquire(self, n_tokens: int) -> Grant:
        """Wait until `n_tokens` fit into the window."""
        if self._limit is None:
            return Grant(0.0, n_tokens)
        async with self._turn:  # first come, first served: small requests cannot overtake a large one forever
            while (delay := self._delay(n_tokens)) > 0:
                self._freed.clear()
                try:
                    await asyncio.wait_for(self._freed.wait(), delay)
                except TimeoutError:
                    continue
            grant = Grant(self._clock(), n_tokens)
            self._grants.append(grant)
            self._used += n_tokens
            return grant

    def correct(self, grant: Grant, n_tokens: int) -> None:
        """Replace the tokens reserved for a request by those it used."""
        if self._limit is None:
            return
        if self._clock() - grant.at < _WINDOW_S:
            self._used += n_tokens - grant.n_tokens
            grant.n_tokens = n_tokens
            self._freed.set()

    def _delay(self, n_tokens: int) -> float:
        """Seconds until the oldest grant leaves the window; 0 if the request fits now."""
        now = self._clock()
        # Use the same sum as below: with a difference, rounding could leave a grant neither expired nor waited for.
        while self._grants and self._grants[0].at + _WINDOW_S <= now:
            self._used -= self._grants.popleft().n_tokens
        if not self._grants or self._limit is None or self._used + n_tokens <= self._limit:
            return 0.0
        return self._grants[0].at + _WINDOW_S - now
