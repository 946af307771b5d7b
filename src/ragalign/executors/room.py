"""Whether a Ray cluster has room for workers, and what each of them takes.

Ray waits without end for resources that a cluster does not have, so the numbers are compared first. A worker needs all
of its resources on one node, so nodes are compared one by one: two nodes with a free GPU each have no room for a model
on two GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragalign.errors import ConfigError, GenerationError

# Seconds to wait for a job that has just ended to release its resources.
_PATIENCE_S = 10.0
# Ray counts resources in these parts of one, which divide without rounding.
_PARTS = 10_000


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """The resources of each worker."""

    workers: int
    cpus: float
    gpus: float

    def __str__(self) -> str:
        cpus = f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"
        each = f"{self.gpus:g} GPU{'' if self.gpus == 1 else 's'} and {cpus}" if self.gpus else cpus
        return f"1 worker needs {each}" if self.workers == 1 else f"{self.workers} workers need {each} each"

    def options(self) -> dict[str, Any]:
        """As options of an actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


def fits(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many workers with these resources the nodes can hold, each on one node.

    Args:
        nodes: the resources of each node, all or free, under Ray's names.
        cpus: of each worker, more than 0.
        gpus: of each worker.
    """
    shares = [(name, max(round(share * _PARTS), 1)) for name, share in (("CPU", cpus), ("GPU", gpus)) if share > 0]
    return sum(min(round(node.get(name, 0.0) * _PARTS) // share for name, share in shares) for node in nodes)


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    workers: int | None,
    *,
    gpus: float,
    cpus: float | None = None,
    free: Sequence[Mapping[str, float]] | None = None,
) -> WorkerResources:
    """Plan the number and the resources of workers.

    With GPUs, each worker takes `gpus` of them and one CPU, and there are as many workers as fit, if no number is
    given. Without GPUs, one worker by default; each takes as many CPUs as are free for all of them.

    Args:
        nodes: the resources of each node, under Ray's names.
        workers: how many; None for the default.
        gpus: of each worker, if the cluster has any.
        cpus: of each worker; None for the default.
        free: the resources of each node that no other job holds; None for all.

    Raises:
        ConfigError: the cluster is too small, with the numbers.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    if cpus is not None and cpus <= 0:
        raise ConfigError(f"cpus must be more than 0, not {cpus:g}")
    if not any(node.get("GPU", 0.0) > 0 for node in nodes):
        gpus = 0.0
    most = fits(nodes, cpus or 1, gpus)
    wanted = workers or (max(most, 1) if gpus else 1)
    if wanted > most:
        raise ConfigError(_too_small(WorkerResources(wanted, cpus or 1, gpus), nodes, most))
    if cpus is None:
        cpus = 1 if gpus else _even_share(nodes if free is None else free, wanted)
    return WorkerResources(wanted, cpus, gpus)


def _even_share(free: Sequence[Mapping[str, float]], workers: int) -> int:
    cpus = max((int(node.get("CPU", 0.0)) for node in free), default=1)
    while cpus > 1 and fits(free, cpus, 0) < workers:
        cpus -= 1
    return max(cpus, 1)


def _too_small(need: WorkerResources, nodes: Sequence[Mapping[str, float]], most: int) -> str:
    has = f"{_total(nodes)} on {len(nodes)} node{'s' if len(nodes) != 1 else ''}"
    advice = f"use at most {most}" if most > 0 else "a worker must fit on one node: add larger nodes"
    return f"the Ray cluster is too small: {need}, but it has {has}; {advice}"


def _total(nodes: Sequence[Mapping[str, float]]) -> str:
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    return f"{cpus:g} CPUs and {gpus:g} GPUs"


def node_resources(ray: Any) -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_resources(ray: Any) -> list[dict[str, float]]:
    """The resources of each node that is alive which no job holds now."""
    # The public `ray.available_resources` adds these up. Names of which nothing is free are missing.
    free = ray._private.state.available_resources_per_node()
    return [free.get(node["NodeID"], {}) for node in ray.nodes() if node["Alive"]]


def wait_for_room(ray: Any, need: WorkerResources, patience_s: float = _PATIENCE_S) -> None:
    """Check that what a job needs is free now, waiting briefly for another job's end.

    Raises:
        GenerationError: other jobs hold it, with the numbers.
    """
    until = time.monotonic() + patience_s
    while (n := fits(free := free_resources(ray), need.cpus, need.gpus)) < need.workers:
        if time.monotonic() > until:
            raise GenerationError(busy(need, free, n))
        time.sleep(0.2)


def busy(need: WorkerResources, free: Sequence[Mapping[str, float]], n: int) -> str:
    """The message that only `n` workers find room in what is free."""
    advice = f"wait for other jobs, or use at most {n} worker{'s' if n > 1 else ''}" if n else "wait for other jobs"
    return (
        f"the Ray cluster is busy: {need}, and {_total(free)} are free on {len(free)} "
        f"node{'s' if len(free) != 1 else ''}, with room for {n}; {advice}"
    )
