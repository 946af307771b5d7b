"""Makes the next items of an iterator in a thread, while the earlier ones are worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

# Items that wait until somebody wants them: each may be a prompt of thousands of tokens.
_MOST_READY = 1024
# How soon a thread that waits for room notices that nobody wants its items any more.
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class _End:
    """No more items come, because of `error` if there is one."""

    error: BaseException | None = None


class Ahead(Generic[T]):
    """Items of an iterable, made in a thread ahead of time; those of a sequence are there already and need none.

    Whoever makes one closes it, also when an error passes through: until then the thread keeps running.
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

    def take(self, n: int, *, wait: bool) -> list[T]:
        """The next `n` items; fewer where no more come or, without `wait`, where no more are ready.

        Raises:
            Exception: with `wait`, what the iterable raised, once all before it are taken.
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
        """Make no more items; one that is being made is still finished. Whoever waits gets none."""
        self._is_closed = True
        with suppress(queue.Full):  # then nobody waits
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
        """Wait for room; return whether anybody still wants items."""
        # A program may end without closing this, and would then wait for this thread for ever.
        while not self._is_closed and threading.main_thread().is_alive():
            try:
                self._ready.put(item, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False
