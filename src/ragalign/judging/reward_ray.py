"""Reward models in actors on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from queue import Queue
from types import TracebackType
from typing import Any, Self

from ragalign.errors import RagalignError
from ragalign.executors.cluster import connect, path_on_workers, quiet_warnings
from ragalign.executors.failures import reason_of
from ragalign.executors.room import free_resources, node_resources, plan_workers, wait_for_room
from ragalign.executors.settings import receive_secrets, secrets, shared_settings
from ragalign.judging.judges import RewardJudge
from ragalign.judging.retries import RequestError
from ragalign.judging.reward import LocalRewardModels

# Seconds for an answer and for loading the model; an actor that is started again may find no place.
_ANSWER_S = 1800.0


class _Worker(LocalRewardModels):
    """The reward models of an actor."""

    def __init__(self, given: Mapping[str, str]) -> None:
        receive_secrets(given)
        super().__init__()


class RayRewardModels:
    """Scores answers in actors of a Ray cluster. Each loads the models it is asked for; a dead one is started again.

    Args:
        address: ``local``, ``auto`` or an address; see `ragalign.executors.connect`.
        workers: number of actors; by default one per GPU of the cluster, or one without GPUs.

    Raises:
        ConfigError: no cluster can be reached, or it is too small.
        GenerationError: other jobs use the cluster.
        MissingDependencyError: Ray is not installed.
    """

    def __init__(self, *, address: str = "auto", workers: int | None = None) -> None:
        self._stack = ExitStack()
        self._free: Queue[Any] = Queue()
        try:
            ray = self._ray = self._stack.enter_context(connect(address))
            need = plan_workers(node_resources(ray), workers, gpus=1, free=free_resources(ray))
            wait_for_room(ray, need)
            # An answer is tried twice, so that one which kills its actor ends; the next one finds the actor restarted.
            options = {**need.options(), **shared_settings(), "max_restarts": -1, "max_task_retries": 1}
            with quiet_warnings():
                for _ in range(need.workers):
                    worker = ray.remote(_Worker).options(**options).remote(secrets())
                    self._stack.callback(ray.kill, worker)
                    self._free.put(worker)
        except BaseException:
            self._stack.close()
            raise
        self.n_at_once = need.workers

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with quiet_warnings():
            self._stack.close()

    def score(self, judge: RewardJudge, messages: Sequence[Mapping[str, str]]) -> tuple[float, int]:
        """As `ragalign.judging.reward.RewardModel.score`, by an actor that is free.

        Raises:
            ConfigError: the model cannot be loaded.
            RequestError: the answer is too long for the model, or the actor failed.
        """
        there = replace(judge, model=path_on_workers(judge.model))
        worker = self._free.get()
        try:
            value, n_tokens = self._ray.get(worker.score.remote(there, list(messages)), timeout=_ANSWER_S)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RagalignError | RequestError):
                raise error.cause from None
            raise RequestError(f"a worker failed: {reason_of(self._ray, error)}") from error
        except self._ray.exceptions.RayError as error:
            raise RequestError(f"the Ray cluster failed: {reason_of(self._ray, error)}") from error
        finally:
            self._free.put(worker)
        return float(value), int(n_tokens)
