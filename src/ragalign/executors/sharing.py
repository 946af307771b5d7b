"""Sharing out items among a crew, in runs that keep what belongs together, until each is done once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import GenerationError
from ragalign.executors.crew import Crew, Loss, Worker
from ragalign.executors.division import Division
from ragalign.executors.gathering import Gathering
from ragalign.generation.ahead import Ahead
from ragalign.generator import ClosableIterator

# Items that are divided among the workers at a time: more than a planner's batch.
_MOST_TOGETHER = 8192
# Worker deaths after which the item is to blame; at the last one, it was the worker's only item.
_MOST_DEATHS = 4
# Seconds between looks at workers, and at items that a worker waits for.
_LOOK_S, _SOON_S = 5.0, 0.05

T = TypeVar("T")


def share(
    crew: Crew[Any],
    items: Iterable[T],
    method: str,
    *arguments: Any,
    run_size: int,
    ids_of: Callable[[T], NDArray[np.int32]],
    name_of: Callable[[int, T], str],
) -> ClosableIterator[tuple[list[int], list[T], Any]]:
    """Give items to workers, and yield (positions, items, results) as they come, each position once.

    Args:
        crew: the workers.
        items: a sequence, or an iterator, which is read in a thread.
        method: of the workers.
        arguments: its further arguments.
        run_size: items given to a worker at a time.
        ids_of: the token ids of an item, whose shared beginnings stay together.
        name_of: what to call an item in messages, by its position.

    Raises:
        RagalignError: the method failed, workers fail too often, or they die over the same item.
        Exception: the exception of an iterator, once its items are done.
    """
    with crew.reserved(), closing(Ahead(items)) as coming:
        yield from _Sharing(crew, coming, (method, *arguments), run_size, ids_of, name_of).answers()


class _Sharing(Generic[T]):
    """One job of a crew; the arguments are those of `share`."""

    def __init__(
        self,
        crew: Crew[Any],
        coming: Ahead[T],
        call: Sequence[Any],
        run_size: int,
        ids_of: Callable[[T], NDArray[np.int32]],
        name_of: Callable[[int, T], str],
    ) -> None:
        self._crew, self._coming, self._ids_of, self._name_of = crew, coming, ids_of, name_of
        self._method, *self._arguments = call
        self._enough = run_size * len(crew.workers)
        self._division = Division(len(crew.workers), run_size)
        self._gathering = Gathering(coming, self._enough, _MOST_TOGETHER)
        self._left: dict[int, T] = {}
        self._n_read, self._is_over = 0, False

    def answers(self) -> Iterator[tuple[list[int], list[T], Any]]:
        while True:
            self._read()
            if self._is_over:
                return
            self._crew.fill_places()
            self._hand_out()
            is_waiting = self._is_starved() and not self._coming.has_ended
            for worker, run in self._crew.ready(_SOON_S if is_waiting else _LOOK_S):
                # This run may have been lost along with its worker.
                if run in worker.runs and (found := self._answer(worker, run)) is not None:
                    positions, results = found
                    yield positions, [self._left.pop(position) for position in positions], results

    def _is_starved(self) -> bool:
        return not self._division.n_left and any(not worker.runs for worker, _ in self._crew.started)

    def _read(self) -> None:
        if not self._left:
            fresh = self._gathering.wait()
            self._is_over = not fresh
        elif self._division.n_left <= self._enough:
            fresh = self._gathering.take(is_starved=self._is_starved())
        else:
            return
        self._left |= enumerate(fresh, self._n_read)
        self._division.add(self._n_read, list(map(self._ids_of, fresh)))
        self._n_read += len(fresh)

    def _hand_out(self) -> None:
        for n_runs in (1, 2):  # each worker has one before any has two
            for worker, about in self._crew.started:
                if len(worker.runs) >= min(n_runs, about.n_runs) or self._is_suspect(worker):
                    continue
                if positions := self._division.take(worker.number, is_busy=bool(worker.runs)):
                    items = [self._left[position] for position in positions]
                    self._crew.begin(worker, self._method, items, positions, *self._arguments)

    def _is_suspect(self, worker: Worker[Any]) -> bool:
        """Whether a worker has a run that others died over, and so has it alone."""
        firsts = (next(iter(run.values()), None) for run in worker.runs.values())
        return any(first is not None and self._division.n_deaths(first) > 0 for first in firsts)

    def _answer(self, worker: Worker[Any], run: Any) -> tuple[list[int], Any] | None:
        try:
            found = self._crew.answer(worker, run)
        except Exception as error:
            self._give_again(worker, self._crew.see_error(worker, error))
            return None
        if found is None:
            unfinished = list(worker.runs.pop(run).values())
            self._give_again(worker, Loss("it gave no answer", unfinished, []))
        return found

    def _give_again(self, worker: Worker[Any], loss: Loss) -> None:
        """Give what a worker leaves to the one that is free soonest: a new one has to start first.

        Raises:
            GenerationError: too many workers have died over an item.
        """
        others = [other.number for other, _ in self._crew.started if other is not worker]
        heir = min(others, key=self._division.n_left_of, default=worker.number)
        self._division.give_back(heir, loss.waiting)
        self._division.give_back(heir, loss.current, is_death=True)
        for position in loss.current:
            if (n := self._division.n_deaths(position)) >= _MOST_DEATHS:
                name = self._name_of(position, self._left[position])
                raise GenerationError(f"{n} workers died on {name}; leave it out; last reason: {loss.reason}")
