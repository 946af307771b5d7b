"""A generator whose engines are actors on a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from ragalign.errors import ConfigError, GenerationError, RagalignError
from ragalign.executors.cluster import Need, connect, node_resources, plan_workers, quiet_warnings, wait_for_room
from ragalign.executors.division import Division
from ragalign.executors.worker import About, Answer, EngineWorker
from ragalign.generation.ahead import Ahead
from ragalign.generation.base import BaseGenerator, SampledOutput, one_line
from ragalign.generation.distributions import Distributions
from ragalign.generator import ClosableIterator
from ragalign.types import Completion, Decoding, Delta, Prompt

# Prompts given to a worker at a time; an engine that batches has two such runs, so that it never waits for the driver.
_RUN = 256
# Prompts that are divided among the workers together: more than a planner's batch. A division waits for prompts that
# are still being made, but not longer than this.
_MOST_TOGETHER, _GATHER_S = 8192, 1.0
# Deaths in a row without an answer after which the fault is not the machines'.
_MOST_DEATHS = 5
_LOOK_S = 5.0
# Seconds for which a worker that has died can lack a place while no other one lives.
_REPLACE_S = 120.0


@dataclass
class _Worker:
    """An actor; `about` is None until its engine has started, and `runs` are the runs that it works on."""

    number: int
    actor: Any
    starting: Any
    about: About | None = None
    runs: dict[Any, dict[int, int]] = field(default_factory=dict)


class RayGenerator(BaseGenerator):
    """Answers prompts with one engine per GPU, or several per machine, each in an actor on a Ray cluster.

    Prompts are divided into contiguous runs in the order in which they come (see `ragalign.executors.division`), so
    prompts planned to share prefixes share an engine. Answers come in any order. If an actor dies, its unfinished
    prompts are given out again and a new actor is started; answers that have arrived are kept. Decoding with a seed
    gives the answers of a single engine, as far as its kernels do not depend on the batch.

    Args:
        model: as in `ragalign.generation.make_generator`; a folder must be the same on all nodes.
        backend: ``auto``, ``vllm`` or ``transformers``.
        address: ``local``, ``auto`` or an address; see `ragalign.executors.connect`.
        workers: number of engines; by default as many as the cluster has GPUs for, or one without GPUs.
        cpus: CPUs of each engine; by default one beside a GPU, otherwise an even share of the cluster's.
        context_length: maximum tokens of prompt and completion together, if less than the model's.
        run_size: prompts given to an engine at a time.
        options: options of the engine, such as ``dtype="bfloat16"``.

    Raises:
        ConfigError: no cluster can be reached, it is too small, or an option is wrong.
        GenerationError: an engine did not start, or other jobs use the cluster.
        MissingDependencyError: Ray is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        backend: str = "auto",
        address: str = "auto",
        workers: int | None = None,
        cpus: float | None = None,
        context_length: int | None = None,
        run_size: int = _RUN,
        **options: Any,
    ) -> None:
        if backend.startswith(("http://", "https://")) or backend == "openai":
            raise ConfigError("an endpoint needs no Ray cluster: leave out the cluster, or name a backend with engines")
        if run_size < 1:
            raise ConfigError(f"run_size must be at least 1, not {run_size}")
        self._model = str(model)
        self._arguments = (backend, self._model, context_length, options)
        self._run_size = run_size
        self._stack = ExitStack()
        self._workers: list[_Worker] = []
        self._started: dict[int, float] = {}
        self._n_deaths = 0
        try:
            self._ray = self._stack.enter_context(connect(address))
            gpus = float(options.get("tensor_parallel_size", 1) * options.get("pipeline_parallel_size", 1))
            need = plan_workers(node_resources(self._ray), workers, gpus=gpus)
            self._need = need if cpus is None else Need(need.workers, cpus, need.gpus)
            wait_for_room(self._ray, self._need)
            self._stack.callback(self._end_workers)
            with quiet_warnings():
                self._workers = [self._start(number) for number in range(need.workers)]
                self._about = self._first_about()
        except BaseException:
            self._stack.close()
            raise

    @property
    def model(self) -> str:
        """The model's name or folder."""
        return self._model

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together, of the first engine."""
        return self._about.context_length

    @property
    def vocabulary_size(self) -> int | None:
        """The size of the model's vocabulary."""
        return self._about.vocabulary_size

    @property
    def unsupported(self) -> frozenset[str]:
        """The fields of `Decoding` that the engines do not support."""
        return self._about.unsupported

    @property
    def n_workers(self) -> int:
        """The number of engines."""
        return self._need.workers

    def worker_pids(self) -> list[int]:
        """The process ids of the engines that have started, each on its node."""
        return [worker.about.pid for worker in self._workers if worker.about is not None]

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix caches of all engines; returns whether they have one."""
        self._wait_until_started()
        found = [worker.actor.reset_prefix_cache.remote() for worker in self._workers]
        return all(self._ray.get(found))

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._stack.close()

    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        with closing(self._answers(prompts, decoding)) as answers:
            for position, completion in answers:
                for sample, output in enumerate(completion.outputs):
                    yield SampledOutput(
                        position,
                        sample,
                        completion.prompt,
                        output,
                        completion.n_cached_tokens,
                        completion.latency_s,
                        completion.first_token_s,
                        completion.n_reused_tokens,
                    )

    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """The whole answer in one part: streams are for one engine."""
        [(_, completion)] = self._answers([prompt], decoding)
        [output] = completion.outputs
        yield Delta(
            output.text,
            output.n_tokens,
            output.finish_reason,
            completion.n_cached_tokens,
            n_reused_tokens=completion.n_reused_tokens,
        )

    def _distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], top_k: int | None
    ) -> Iterator[tuple[int, Distributions]]:
        raise ConfigError("probabilities of given tokens need an engine in this process: leave out the Ray cluster")

    def _answers(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[tuple[int, Completion]]:
        if not self._workers:
            raise GenerationError(f"the generator of {self._model} is closed")
        division = Division(len(self._workers), self._run_size)
        asked: dict[int, Prompt] = {}  # without an answer so far
        n_read, is_over = 0, False
        with closing(Ahead(prompts)) as coming, quiet_warnings():
            try:
                while True:
                    if not is_over and division.n_left <= self._run_size * len(self._workers):
                        fresh = self._gather(coming, wait=not asked)
                        is_over = not fresh and not asked
                        asked |= enumerate(fresh, n_read)
                        division.add(n_read, [prompt.ids for prompt in fresh])
                        n_read += len(fresh)
                    if is_over and not asked:
                        return
                    self._hand_out(division, asked, decoding)
                    for position, answer in self._arrived(division):
                        yield position, answer.completion(asked.pop(position))
            finally:
                self._drop_runs()

    def _gather(self, coming: Ahead[Prompt], *, wait: bool) -> list[Prompt]:
        """The prompts that are ready now or soon; with `wait`, at least one unless there are no more."""
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

    def _hand_out(self, division: Division, asked: dict[int, Prompt], decoding: Decoding) -> None:
        for worker in self._workers:
            most = 0 if worker.about is None else 2 if worker.about.together else 1
            while len(worker.runs) < most and (positions := division.take(worker.number)):
                prompts = [asked[position] for position in positions]
                run = worker.actor.answer.remote(prompts, decoding)
                worker.runs[run] = dict(enumerate(positions))

    def _arrived(self, division: Division) -> Iterator[tuple[int, Answer]]:
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

    def _see_run(self, worker: _Worker, run: Any, division: Division) -> Iterator[tuple[int, Answer]]:
        unfinished = worker.runs[run]
        try:
            position, answer = self._ray.get(next(run))
        except StopIteration:
            del worker.runs[run]
            division.give_back(worker.number, list(unfinished.values()))
            return
        except Exception as error:
            self._see_error(worker, error, division)
            return
        self._n_deaths = 0
        yield unfinished.pop(position), answer

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
            GenerationError: that is so, with the numbers.
        """
        if any(worker.about is not None for worker in self._workers):
            return
        lost = [worker for worker in self._workers if time.monotonic() - self._started[worker.number] > _REPLACE_S]
        if len(lost) < len(self._workers):
            return
        free = self._ray.available_resources()
        if all(free.get(name, 0.0) < share for name, share in (("CPU", self._need.cpus), ("GPU", self._need.gpus))):
            raise GenerationError(
                f"no worker is left, and a new one needs {self._need.cpus:g} CPUs and {self._need.gpus:g} GPUs, but "
                f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs are free"
            )

    def _start(self, number: int) -> _Worker:
        # One more thread, so that an engine that batches works on two runs at once.
        options = {**self._need.options(), "max_concurrency": 2, "max_restarts": 0, "max_task_retries": 0}
        made = self._ray.remote(EngineWorker).options(**options).remote(*self._arguments)
        self._started[number] = time.monotonic()
        return _Worker(number, made, made.start.remote())

    def _end_workers(self) -> None:
        with quiet_warnings():
            for worker in self._workers:
                self._ray.kill(worker.actor)
        self._workers = []

    def _drop_runs(self) -> None:
        """Forget what is still running. It cannot be cancelled, so a worker with unfinished prompts is replaced."""
        for worker in list(self._workers):
            if any(worker.runs.values()):
                self._ray.kill(worker.actor)
                self._workers[worker.number] = self._start(worker.number)
            worker.runs.clear()

    def _wait_until_started(self) -> None:
        while waiting := [worker for worker in self._workers if worker.about is None]:
            self._see_first(waiting)

    def _first_about(self) -> About:
        """Wait for the first engine; the others can be slower."""
        while True:
            for worker in self._workers:
                if worker.about is not None:
                    return worker.about
            self._see_first(self._workers)

    def _see_first(self, workers: Sequence[_Worker]) -> None:
        """Wait for a moment until one of these engines has started."""
        starting = {worker.starting: worker for worker in workers}
        ready, _ = self._ray.wait(list(starting), num_returns=1, timeout=_LOOK_S)
        for thing in ready:
            self._see_started(starting[thing], None)
        if not ready:
            self._check_places()
