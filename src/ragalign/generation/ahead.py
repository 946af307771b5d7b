"""Reading an iterator ahead in a thread, while earlier items are processed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# Maximum number of items to buffer: each can be a prompt of thousands of tokens.
_MOST_READY = 1024
# Seconds after which a thread that waits for space notices that the reader is closed.
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class _End:
    """The end of the items, with the `error` that ended them, if any."""

    error: BaseException | None = None


class Ahead(Generic[T]):
    """Reads the items of an iterable ahead in a thread; a sequence is read directly.

    Always close it, also after an error: the thread runs until then.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._ready: queue.Queue[T | _End]
        self._has_ended = False
        self._error: BaseException | None = None
        self._is_closed = False
        if isinstance(items, Sequence):
            self._ready = queue.Queue()
            for item in (*items, _End()):
                self._ready.put(item)
        else:
            self._ready = queue.Queue(_MOST_READY)
            threading.Thread(target=self._make, args=(items,), name="ragalign-ahead").start()

    @property
    def has_ended(self) -> bool:
        """Whether all items are taken."""
        return self._has_ended

    def take(self, n: int, *, wait: bool) -> list[T]:
        """Return the next `n` items, or fewer at the end or, without `wait`, if fewer are ready.

        Raises:
            Exception: with `wait`, the iterable's exception, once all items before it are taken.
        """
        taken: list[T] = []
        while len(taken) < n and not self._has_ended:
            try:
                item = self._ready.get(block=wait)
            except queue.Empty:
                break
            if isinstance(item, _End):
                self._has_ended, self._error = True, item.error
            else:
                taken.append(item)
        if wait and not taken and self._error is not None:
            raise self._error
        return taken

    def close(self) -> None:
        """Stop reading; an item that is being made is still finished. Waiting callers get no more items."""
        self._is_closed = True
        with suppress(queue.Full):  # then no caller waits
            self._ready.put_nowait(_End())

    def _make(self, items: Iterable[T]) -> None:
        error: BaseException | None = None
        try:
            for item in items:
                if not self._put(item):
                    return
        except BaseException as raised:
            error = raised
        self._put(_End(error))

    def _put(self, item: T | _End) -> bool:
        """Wait for space; returns False if the reader was closed."""
        # A program that ends without closing this would otherwise wait for the thread forever.
        while not self._is_closed and threading.main_thread().is_alive():
            try:
                self._ready.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False
