"""Dividing planned prompts among engines so that what shares a prefix stays together.

Each worker gets a contiguous part of the plan, cut where neighbours share least, and works through it in order. A
worker that has finished takes half of the longest part that is left, from its end. So all workers' prompts come in the
plan's order, and each cut costs at most one shared prefix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# A cut can move by this share of a part to where neighbours share less.
_WINDOW = 0.1


def n_shared(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """The number of tokens that two prompts have in common at their beginning."""
    n = min(len(first), len(second))
    different = np.flatnonzero(first[:n] != second[:n])
    return int(different[0]) if len(different) else n


def cuts(ids: Sequence[NDArray[np.int32]], parts: int) -> list[int]:
    """The starts of `parts` contiguous parts with about as many tokens each; the first is 0.

    Args:
        ids: the token ids of the prompts, in planned order.
        parts: number of parts; there are fewer if there are fewer prompts.
    """
    n = len(ids)
    parts = min(parts, n)
    if parts < 2:
        return [0] if n else []
    ends = np.cumsum([len(each) for each in ids])
    window = max(int(_WINDOW * n / parts), 1)
    starts = [0]
    for part in range(1, parts):
        even = int(np.searchsorted(ends, ends[-1] * part / parts, side="left")) + 1
        first = max(even - window, starts[-1] + 1)
        last = min(even + window, n - (parts - part))
        places = range(min(first, last), last + 1)
        starts.append(min(places, key=lambda place: (n_shared(ids[place - 1], ids[place]), abs(place - even))))
    return starts


class Division:
    """The positions that each worker has still to be given, and what it is given next.

    Positions whose worker has died are given out in runs of their own, which become smaller with each death, so that
    the one that kills its workers is alone in the end.

    Args:
        workers: number of workers.
        size: most positions to hand out at a time.
    """

    def __init__(self, workers: int, size: int) -> None:
        self._size = size
        self._parts: list[deque[int]] = [deque() for _ in range(workers)]
        self._deaths: dict[int, int] = {}

    @property
    def n_left(self) -> int:
        """Positions that have not been given to a worker."""
        return sum(map(len, self._parts))

    def n_left_of(self, worker: int) -> int:
        """Positions in a worker's part that it has not been given."""
        return len(self._parts[worker])

    def n_deaths(self, position: int) -> int:
        """How many workers died while they worked on a position."""
        return self._deaths.get(position, 0)

    def add(self, start: int, ids: Sequence[NDArray[np.int32]]) -> None:
        """Divide more prompts, at positions from `start`, among the workers; the least loaded gets the first part."""
        starts = cuts(ids, len(self._parts))
        order = sorted(range(len(self._parts)), key=lambda worker: len(self._parts[worker]))
        for worker, first, end in zip(order, starts, [*starts[1:], len(ids)], strict=False):
            self._parts[worker].extend(range(start + first, start + end))

    def take(self, worker: int, *, is_busy: bool = False) -> list[int]:
        """The next positions for a worker, in the plan's order; empty if there are none for it now.

        Args:
            worker: its number.
            is_busy: whether it still works on a run. Then it takes neither another worker's last run nor
                positions on which a worker died.
        """
        own = self._parts[worker]
        if not own:
            longest = max(self._parts, key=len)
            if is_busy and len(longest) <= self._size:
                return []
            moved = [longest.pop() for _ in range((len(longest) + 1) // 2)]
            own.extend(reversed(moved))
        n_deaths = self.n_deaths(own[0]) if own else 0
        if is_busy and n_deaths:
            return []
        run: list[int] = []
        while own and len(run) < self._most(n_deaths) and self.n_deaths(own[0]) == n_deaths:
            if run and own[0] < run[-1]:  # given back by another worker
                break
            run.append(own.popleft())
        return run

    def give_back(self, worker: int, positions: Sequence[int], *, is_death: bool = False) -> None:
        """Return positions that were not finished; they are next.

        Args:
            worker: the worker to give them to.
            positions: the positions.
            is_death: whether their worker died while it worked on them.
        """
        if is_death:
            self._deaths |= {position: self.n_deaths(position) + 1 for position in positions}
        self._parts[worker].extendleft(sorted(positions, reverse=True))

    def _most(self, n_deaths: int) -> int:
        # Most deaths are not a prompt's fault, so the first one must not cost the engine's batches.
        return self._size if n_deaths < 2 else max(self._size // 16, 1) if n_deaths == 2 else 1
