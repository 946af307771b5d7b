"""The actors of a generator or an encoder: started, watched, and started again when they die."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Generic, TypeVar

from ragalign.errors import GenerationError
from ragalign.executors.cluster import quiet_warnings
from ragalign.executors.failures import as_raised, is_death, reason_of
from ragalign.executors.room import WorkerResources, busy, fits, free_resources
from ragalign.executors.settings import secrets, shared_settings
from ragalign.executors.worker import WorkerInfo

_log = logging.getLogger(__name__)

# Failures of a worker in a row, without an answer, after which it is not started again.
_MOST_FAILURES = 6
# Longest pause before a worker is started again: a GPU's memory is not free at once.
_PAUSE_S = 15.0
# Seconds between looks at workers that do not answer.
_LOOK_S = 5.0
# Seconds in which an actor is placed if there is room, and after which missing room is an error.
_PLACE_S, _REPLACE_S = 10.0, 120.0

Info = TypeVar("Info", bound=WorkerInfo)


@dataclass(eq=False)
class Worker(Generic[Info]):
    """A member of a crew.

    Attributes:
        number: its place in the crew.
        actor: None until it is started, at `due` at the earliest.
        placed, starting: references that are ready once the actor has a place on a node, and once it has started.
        asked: when the actor was asked for.
        about: None until it has started.
        runs: what it works on: by call, the positions that are not done, by their place in the run.
        n_failures: failures in a row, without an answer.
        is_given_up: whether these are too many.
    """

    number: int
    actor: Any = None
    due: float = 0.0
    placed: Any = None
    starting: Any = None
    asked: float = 0.0
    about: Info | None = None
    runs: dict[Any, dict[int, int]] = field(default_factory=dict)
    n_failures: int = 0
    is_given_up: bool = False


@dataclass(frozen=True, slots=True)
class Loss:
    """The work that a worker leaves when it dies.

    Attributes:
        reason: why it died.
        current: positions that it was working on.
        waiting: positions that waited in it.
    """

    reason: str
    current: list[int]
    waiting: list[int]


class Crew(Generic[Info]):
    """Actors of one class.

    They have a method `start`, which takes secrets and returns a `WorkerInfo`, and methods that take a list of items
    and yield ([place in the list, ...], [result, ...]).

    Args:
        ray: the module, connected to a cluster.
        need: how many workers, and what each takes.
        kind: the class. An object must be made at once: what takes time is for `start`.
        arguments: of the class.
        n_threads: calls that an actor works on at the same time; others wait in it.
    """

    def __init__(
        self, ray: Any, need: WorkerResources, kind: type[Any], arguments: Sequence[Any], *, n_threads: int = 1
    ) -> None:
        self._ray, self._need, self._arguments, self._n_threads = ray, need, tuple(arguments), n_threads
        self._has_started = self._is_reserved = False
        self.workers: list[Worker[Info]] = [Worker(number) for number in range(need.workers)]
        with quiet_warnings():
            # Ray would start a dead actor again without end, and repeat what it has answered.
            self._kind = ray.remote(kind).options(
                **need.options(), **shared_settings(), max_concurrency=n_threads, max_restarts=0, max_task_retries=0
            )
            self.fill_places()

    @property
    def started(self) -> list[tuple[Worker[Info], Info]]:
        """The workers that have started."""
        return [(worker, worker.about) for worker in self.workers if worker.about is not None]

    def first(self) -> Info:
        """Wait for the first worker; the others can be slower.

        Raises:
            RagalignError: it did not start.
        """
        self._check_open()
        with quiet_warnings():
            while not (started := self.started):
                self._wait_for_starts()
        return started[0][1]

    def call_all(self, method: str) -> list[Any]:
        """Call a method of every worker that has started, after waiting for those that are starting.

        Those that find no place, such as after the loss of a node, are left out.

        Raises:
            RagalignError: the method failed, workers fail too often, or another job has them.
        """
        self._check_free()
        found: list[Any] = []
        while not found:
            self.first()
            with quiet_warnings():
                while any(map(self._is_starting, self.workers)):
                    self._wait_for_starts()
                asked = [(worker, getattr(worker.actor, method).remote()) for worker, _ in self.started]
                for worker, answer in asked:
                    try:
                        found.append(self._ray.get(answer))
                    except Exception as error:
                        self.see_error(worker, error)
        return found

    def end(self) -> None:
        """End the actors; the crew cannot be used afterwards."""
        with quiet_warnings():
            for worker in self.workers:
                self._dismiss(worker)
        self.workers = []

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the workers for one job. Runs cannot be cancelled, so workers with unfinished ones are killed.

        Raises:
            GenerationError: another job has them, or the crew has ended.
        """
        self._check_free()
        self._is_reserved = True
        try:
            with quiet_warnings():
                yield
        finally:
            self._is_reserved = False
            with quiet_warnings():
                for worker in self.workers:
                    if any(worker.runs.values()):
                        # The next job starts another one. After Ctrl-C there is none.
                        self._dismiss(worker)
                    worker.runs.clear()

    def fill_places(self) -> None:
        """Start the workers that have no actor, unless they failed just now or too often.

        Raises:
            GenerationError: the crew has ended, or each worker has failed too often.
        """
        self._check_open()
        if all(worker.is_given_up for worker in self.workers):
            raise GenerationError(f"no worker is left: each failed {_MOST_FAILURES} times in a row")
        now = time.monotonic()
        for worker in self.workers:
            if worker.actor is None and not worker.is_given_up and worker.due <= now:
                worker.actor = actor = self._kind.remote(*self._arguments)
                worker.placed, worker.asked = actor.__ray_ready__.remote(), now
                worker.starting = actor.start.remote(secrets())

    def begin(
        self, worker: Worker[Info], method: str, items: Sequence[Any], positions: Sequence[int], *more: Any
    ) -> None:
        """Give a worker a run of items at these positions."""
        worker.runs[getattr(worker.actor, method).remote(items, *more)] = dict(enumerate(positions))

    def ready(self, patience_s: float) -> list[tuple[Worker[Info], Any]]:
        """The runs that have an answer or are over, after waiting for one; workers that have started are noted.

        Raises:
            RagalignError: the first worker cannot start, workers fail too often, or none has a place.
        """
        owners = {run: worker for worker in self.workers for run in worker.runs}
        starting = {worker.starting: worker for worker in self.workers if worker.actor and worker.about is None}
        due = [worker.due for worker in self.workers if worker.actor is None and not worker.is_given_up]
        patience_s = max(min([patience_s, *(when - time.monotonic() for when in due)]), 0.01)
        things = [*owners, *starting]
        if not things:
            time.sleep(patience_s)
            return []
        ready, _ = self._ray.wait(things, num_returns=1, timeout=patience_s)
        if not ready:
            self._check_places()
            return []
        # Ray names the first ones first, so that busy workers would hide others.
        ready, _ = self._ray.wait(things, num_returns=len(things), timeout=0)
        for thing in ready:
            if thing in starting:
                self._see_started(starting[thing])
        return [(owners[thing], thing) for thing in ready if thing in owners]

    def answer(self, worker: Worker[Info], run: Any) -> tuple[list[int], Any] | None:
        """The next (positions, results) of a run, which must be ready; None if it is over.

        Raises:
            Exception: Ray's error.
        """
        try:
            places, results = self._ray.get(next(run))
        except StopIteration:
            return None
        except self._ray.exceptions.RayTaskError:
            del worker.runs[run]  # it is over, and the actor is free
            raise
        worker.n_failures = 0
        return [worker.runs[run].pop(place) for place in places], results

    def see_error(self, worker: Worker[Info], error: Exception) -> Loss:
        """Dismiss a worker that has died or cannot start again, and return what it leaves.

        Raises:
            RagalignError: a method failed, the first worker cannot start, or workers fail too often.
        """
        has_failed_to_start = worker.about is None and self._has_started
        if not is_death(self._ray, error) and not has_failed_to_start:
            raise as_raised(self._ray, error) from error
        reason = reason_of(self._ray, error)
        # The runs that are worked on are the first ones.
        unfinished = [list(run.values()) for run in worker.runs.values() if run]
        current, waiting = unfinished[: self._n_threads], unfinished[self._n_threads :]
        self._dismiss(worker)
        worker.n_failures += 1
        worker.due = time.monotonic() + min(2.0**worker.n_failures - 2, _PAUSE_S)
        if worker.n_failures >= _MOST_FAILURES:
            worker.is_given_up = True
            if all(each.is_given_up for each in self.workers):
                raise GenerationError(
                    f"each worker failed {_MOST_FAILURES} times in a row without an answer; the last time: {reason}"
                ) from error
            _log.warning(
                "worker %d of %d failed %d times in a row and is not started again: %s",
                worker.number + 1, len(self.workers), worker.n_failures, reason,
            )  # fmt: skip
        return Loss(reason, list(chain(*current)), list(chain(*waiting)))

    def _see_started(self, worker: Worker[Info]) -> None:
        try:
            worker.about = self._ray.get(worker.starting)
        except Exception as error:
            self.see_error(worker, error)
        else:
            self._has_started = True

    def _wait_for_starts(self) -> None:
        self.fill_places()
        self.ready(_LOOK_S)

    def _is_starting(self, worker: Worker[Info]) -> bool:
        """Whether an actor loads, or was asked for just now."""
        if worker.actor is None or worker.about is not None:
            return False
        return self._has_place(worker) or time.monotonic() - worker.asked < _PLACE_S

    def _has_place(self, worker: Worker[Info]) -> bool:
        """Whether the actor is on a node, where it can take as long to start as it likes."""
        return bool(self._ray.wait([worker.placed], timeout=0)[0])

    def _check_places(self) -> None:
        """Give up if no actor has a place, and there is room for none.

        Raises:
            GenerationError: no worker is left; the message has the numbers.
        """
        waiting = [worker for worker in self.workers if worker.actor is not None]
        if any(worker.about is not None or self._has_place(worker) for worker in waiting):
            return
        if not waiting or any(time.monotonic() - worker.asked < _REPLACE_S for worker in waiting):
            return
        free = free_resources(self._ray)
        if not fits(free, self._need.cpus, self._need.gpus):
            raise GenerationError(f"no worker is left, and {busy(self._need, free, 0)}")

    def _dismiss(self, worker: Worker[Info]) -> None:
        if worker.actor is not None:
            self._ray.kill(worker.actor)  # it can be out of reach instead of dead
        worker.actor = worker.about = None
        worker.runs.clear()

    def _check_free(self) -> None:
        self._check_open()
        if self._is_reserved:
            raise GenerationError("the workers have another job: finish or close its iterator first")

    def _check_open(self) -> None:
        if not self.workers:
            raise GenerationError("the workers were shut down; create a new generator or encoder")
