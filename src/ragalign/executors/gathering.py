"""Gathering items that are still being made until there are enough to divide among all workers.

Each division cuts prompts that share a prefix, so a division of every few prompts would lose what a plan gains.
"""

from __future__ import annotations

import time
from typing import Generic, TypeVar

from ragalign.generation.ahead import Ahead

# Seconds for which workers without work wait for more items.
_GATHER_S = 1.0

T = TypeVar("T")


class Gathering(Generic[T]):
    """Takes items from an iterator and hands them out many at a time.

    Args:
        coming: the items.
        enough: number of items that are worth dividing.
        most: number of items to hand out at once.
    """

    def __init__(self, coming: Ahead[T], enough: int, most: int) -> None:
        self._coming, self._most, self._enough = coming, most, min(enough, most)
        self._found: list[T] = []
        self._oldest = 0.0

    def take(self, *, is_starved: bool) -> list[T]:
        """The items, if there are enough or no more are to come; none otherwise.

        Args:
            is_starved: whether a worker has nothing to do, so that a few items will do after a moment.
        """
        fresh = self._coming.take(self._most - len(self._found), wait=False)
        if not self._found:
            self._oldest = time.monotonic()
        self._found += fresh
        is_late = is_starved and time.monotonic() - self._oldest > _GATHER_S
        if len(self._found) < self._enough and not self._coming.has_ended and not is_late:
            return []
        found, self._found = self._found, []
        return found

    def wait(self) -> list[T]:
        """At least one item, after waiting a moment for more; none at the end.

        Raises:
            Exception: the exception of the iterator, once its items are handed out.
        """
        if not self._found:
            self._found = self._coming.take(1, wait=True)
            self._oldest = time.monotonic()
        while self._found:
            if found := self.take(is_starved=True):
                return found
            time.sleep(0.01)
        return []
