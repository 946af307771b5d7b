"""Actors that share out work: given in runs, given out again if an actor dies, and answered in any order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import GenerationError, RagalignError
from ragalign.executors.cluster import WorkerResources, quiet_warnings
from ragalign.executors.division import Division
from ragalign.executors.worker import EngineInfo, EngineWorker
from ragalign.generation.ahead import Ahead
from ragalign.generation.base import one_line
from ragalign.generator import ClosableIterator

# Items that are divided among the workers together: more than a planner's batch. A division waits for items that are
# still being made, but not longer than this.
_MOST_TOGETHER, _GATHER_S = 8192, 1.0
# Deaths in a row without an answer after which the fault is not the machines'.
_MOST_DEATHS = 5
_LOOK_S = 5.0
# Seconds for which a worker that has died can lack a place while no other one lives.
_REPLACE_S = 120.0

T = TypeVar("T")


@dataclass
class _Worker:
    """An actor; `about` is None until its engine has started, and `runs` are the runs that it works on."""

    number: int
    actor: Any
    starting: Any
    about: EngineInfo | None = None
    runs: dict[Any, dict[int, int]] = field(default_factory=dict)


class Crew:
    """The actors of one generator.

    Args:
        ray: the module, connected to a cluster.
        need: how many workers, and what each takes.
        arguments: of `EngineWorker`.
        run_size: items given to a worker at a time.
    """

    def __init__(self, ray: Any, need: WorkerResources, arguments: Sequence[Any], run_size: int) -> None:
        self._ray, self._need, self._arguments, self._run_size = ray, need, tuple(arguments), run_size
        self._started: dict[int, float] = {}
        self._n_deaths = 0
        self._workers: list[_Worker] = []
        with quiet_warnings():
            for number in range(need.workers):
                self._workers.append(self._start(number))

    @property
    def pids(self) -> list[int]:
        """The process ids of the engines that have started, each on its node."""
        return [worker.about.pid for worker in self._workers if worker.about is not None]

    def first(self) -> EngineInfo:
        """Wait for the first engine; the others can be slower.

        Raises:
            RagalignError: it did not start.
        """
        with quiet_warnings():
            while True:
                for worker in self._workers:
                    if worker.about is not None:
                        return worker.about
                self._see_first(self._workers)

    def call_all(self, method: str) -> list[Any]:
        """Call a method of every worker, once all have started; again if one dies meanwhile.

        Raises:
            RagalignError: the engine failed, or workers die too often.
        """
        while waiting := [worker for worker in self._workers if worker.about is None]:
            self._see_first(waiting)
        asked = [(worker, getattr(worker.actor, method).remote()) for worker in self._workers]
        found = []
        for worker, answer in asked:
            try:
                found.append(self._ray.get(answer))
            except Exception as error:
                self._see_error(worker, error, None)
        return found if len(found) == len(asked) else self.call_all(method)

    def end(self) -> None:
        """End the actors; the crew cannot be used afterwards."""
        with quiet_warnings():
            for worker in self._workers:
                self._ray.kill(worker.actor)
        self._workers = []

    def run(
        self, items: Iterable[T], ids_of: Callable[[T], NDArray[np.int32]], method: str, *arguments: Any
    ) -> ClosableIterator[tuple[int, T, Any]]:
        """Give items to the workers, and yield (position, item, result) as they come, each once.

        Args:
            items: a sequence, or an iterator, which is read in a thread.
            ids_of: the token ids of an item, whose shared beginnings stay together.
            method: of the workers; it takes a list of items and yields (position in it, result).
            arguments: its further arguments.

        Raises:
            RagalignError: the engine failed, or workers die too often.
            Exception: the exception of an iterator, once its items are done.
        """
        if not self._workers:
            raise GenerationError("the generator is closed")
        division = Division(len(self._workers), self._run_size)
        left: dict[int, T] = {}
        n_read, is_over = 0, False
        with closing(Ahead(items)) as coming, quiet_warnings():
            try:
                while True:
                    if not is_over and division.n_left <= self._run_size * len(self._workers):
                        fresh = _gather(coming, wait=not left)
                        is_over = not fresh and not left
                        left |= enumerate(fresh, n_read)
                        division.add(n_read, list(map(ids_of, fresh)))
                        n_read += len(fresh)
                    if is_over and not left:
                        return
                    self._hand_out(division, left, method, arguments)
                    for position, result in self._arrived(division):
                        yield position, left.pop(position), result
            finally:
                self._drop_runs()

    def _hand_out(self, division: Division, left: Mapping[int, Any], method: str, arguments: Sequence[Any]) -> None:
        for worker in self._workers:
            # An engine that batches has two runs, so that it never waits for the driver.
            most = 0 if worker.about is None else 2 if worker.about.together else 1
            while len(worker.runs) < most and (positions := division.take(worker.number)):
                run = getattr(worker.actor, method).remote([left[position] for position in positions], *arguments)
                worker.runs[run] = dict(enumerate(positions))

    def _arrived(self, division: Division) -> Iterator[tuple[int, Any]]:
        """Answers that have arrived, after waiting for a moment if there are none."""
        owners: dict[Any, _Worker] = {run: worker for worker in self._workers for run in worker.runs}
        owners |= {worker.starting: worker for worker in self._workers if worker.about is None}
        ready, _ = self._ray.wait(list(owners), num_returns=1, timeout=_LOOK_S)
        if not ready:
            self._check_places()
        for thing in ready:
            worker = owners[thing]
            if thing is worker.starting:
                self._see_started(worker, division)
            elif thing in worker.runs:
                yield from self._see_run(worker, thing, division)

    def _see_run(self, worker: _Worker, run: Any, division: Division) -> Iterator[tuple[int, Any]]:
        unfinished = worker.runs[run]
        try:
            position, result = self._ray.get(next(run))
        except StopIteration:
            del worker.runs[run]
            division.give_back(worker.number, list(unfinished.values()))
            return
        except Exception as error:
            self._see_error(worker, error, division)
            return
        self._n_deaths = 0
        yield unfinished.pop(position), result

    def _see_started(self, worker: _Worker, division: Division | None) -> None:
        try:
            worker.about = self._ray.get(worker.starting)
        except Exception as error:
            self._see_error(worker, error, division)

    def _see_error(self, worker: _Worker, error: Exception, division: Division | None) -> None:
        """Replace a worker that has died.

        Raises:
            RagalignError: the engine failed, or workers die too often.
        """
        errors = self._ray.exceptions
        if isinstance(error, errors.RayTaskError):
            cause = error.cause
            if isinstance(cause, RagalignError):
                raise cause from None
            raise GenerationError(f"a worker failed: {one_line(cause)}") from error
        if not isinstance(error, errors.RayActorError | errors.ObjectLostError | errors.NodeDiedError):
            raise GenerationError(f"the Ray cluster failed: {one_line(error)}") from error
        if getattr(error, "actor_init_failed", False):
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "unknown reason")
            raise GenerationError(f"a worker could not start: {one_line(ValueError(reason))}") from error
        self._n_deaths += 1
        if self._n_deaths > _MOST_DEATHS:
            raise GenerationError(
                f"{self._n_deaths} workers died in a row without an answer; the last one: {one_line(error)}"
            ) from error
        for unfinished in worker.runs.values():
            if division is not None:
                division.give_back(worker.number, list(unfinished.values()))
        self._ray.kill(worker.actor)  # it can be out of reach instead of dead
        self._workers[worker.number] = self._start(worker.number)

    def _check_places(self) -> None:
        """Give up if no worker lives and a new one finds no place.

        Raises:
            GenerationError: no worker is left; the message has the numbers.
        """
        if any(worker.about is not None for worker in self._workers):
            return
        lost = [worker for worker in self._workers if time.monotonic() - self._started[worker.number] > _REPLACE_S]
        if len(lost) < len(self._workers):
            return
        free = self._ray.available_resources()
        if any(free.get(name, 0.0) < share for name, share in (("CPU", self._need.cpus), ("GPU", self._need.gpus))):
            raise GenerationError(
                f"no worker is left, and a new one needs {self._need.cpus:g} CPUs and {self._need.gpus:g} GPUs, but "
                f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs are free"
            )

    def _start(self, number: int) -> _Worker:
        # A second thread lets a batching engine work on two runs at once. On CPUs, vLLM depends on OpenMP settings of
        # the thread that started it, so there the second run waits in the actor for the end of the first.
        threads = 2 if self._need.gpus else 1
        options = {**self._need.options(), "max_concurrency": threads, "max_restarts": 0, "max_task_retries": 0}
        made = self._ray.remote(EngineWorker).options(**options).remote(*self._arguments)
        self._started[number] = time.monotonic()
        return _Worker(number, made, made.start.remote())

    def _drop_runs(self) -> None:
        """Forget what is still running. It cannot be cancelled, so a worker with unfinished prompts is replaced."""
        for worker in list(self._workers):
            if any(worker.runs.values()):
                self._ray.kill(worker.actor)
                self._workers[worker.number] = self._start(worker.number)
            worker.runs.clear()

    def _see_first(self, workers: Sequence[_Worker]) -> None:
        """Wait for a moment until one of these engines has started."""
        starting = {worker.starting: worker for worker in workers}
        ready, _ = self._ray.wait(list(starting), num_returns=1, timeout=_LOOK_S)
        for thing in ready:
            self._see_started(starting[thing], None)
        if not ready:
            self._check_places()


def _gather(coming: Ahead[T], *, wait: bool) -> list[T]:
    """The items that are ready now or soon; with `wait`, at least one unless there are no more."""
    until = time.monotonic() + _GATHER_S
    found = coming.take(1, wait=True) if wait else []
    while len(found) < _MOST_TOGETHER:
        fresh = coming.take(_MOST_TOGETHER - len(found), wait=False)
        found += fresh
        if not wait or time.monotonic() > until or (not fresh and coming.has_ended):
            break
        if not fresh:
            time.sleep(0.01)
    return found
