"""Connecting to a Ray cluster, and whether it has room for what is asked.

Ray waits without end for resources that a cluster does not have, so the numbers are compared first.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation.base import one_line

# Seconds to wait for what another job, just over, has not given back yet.
_PATIENCE_S = 10.0
_CONNECT_S = 10.0
# Ray reads these when it is imported, and a local cluster when it starts.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray warns that it hides the GPUs from actors that ask for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray Data's own statistics fail now and then at the end of a run, and would print tracebacks.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # On a machine whose memory is full of other programs, a local cluster would kill its own workers for ever.
    "RAY_memory_monitor_refresh_ms": "0",
}


@dataclass(frozen=True, slots=True)
class WorkerResources:
    """What each worker takes of the cluster."""

    workers: int
    cpus: float
    gpus: float

    def options(self) -> dict[str, Any]:
        """As options of an actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus}


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a cluster, and yield the module `ray`.

    Args:
        address: ``local`` starts a cluster on this machine and ends it afterwards; ``auto`` connects to the cluster of
            this machine or of RAY_ADDRESS; anything else is the address of one, such as ``10.0.0.1:6379`` or
            ``ray://head:10001``. In a process that is connected already, that cluster is used and stays.

    Raises:
        ConfigError: no cluster can be reached there.
        MissingDependencyError: Ray is not installed.
    """
    with quiet_warnings():
        ray = import_ray()
        was_connected = ray.is_initialized()
        if not was_connected:
            _init(ray, address)
    try:
        yield ray
    finally:
        if not was_connected:
            with quiet_warnings():
                ray.shutdown()


def import_ray() -> Any:
    """Import Ray with settings that suit a program that is not about Ray; those of the environment come first.

    Raises:
        MissingDependencyError: Ray is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    return require("ray", "work on a cluster")


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Keep warnings about Ray's own code from the program, which cannot act on them."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning, ResourceWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category)
        yield


def _check_reachable(address: str) -> None:
    """Refuse an address that nothing listens on: Ray itself tries for minutes.

    Raises:
        ConfigError: nothing listens there, or the address has no port.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"a Ray cluster's address is local, auto or HOST:PORT, not {address!r}")
    # The C library takes a port modulo 65,536, and so would find whatever listens there.
    if not 0 < int(port) < 2**16:
        raise ConfigError(f"no Ray cluster at {address}: a port is between 1 and 65535")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"no Ray cluster at {address}: {reason}; start one with `ray start --head`") from None


def _init(ray: Any, address: str) -> None:
    if address not in ("local", "auto"):
        _check_reachable(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address == "local":
        options |= {"address": "local", "include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except Exception as error:  # Ray's errors here share no class
        advice = "start one with `ray start --head`, or use --ray local"
        raise ConfigError(f"no Ray cluster at {address!r}: {one_line(error, 160)}; {advice}") from None


def fits(nodes: Sequence[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many workers with these resources the nodes can hold, each on one node."""
    return sum(
        int(min(node.get(name, 0.0) // share for name, share in (("CPU", cpus), ("GPU", gpus)) if share > 0))
        for node in nodes
    )


def plan_workers(
    nodes: Sequence[Mapping[str, float]],
    workers: int | None,
    *,
    gpus: float,
    reserved_cpus: float = 0.0,
    free_cpus: float | None = None,
) -> WorkerResources:
    """What to ask the cluster for.

    With GPUs, each worker takes `gpus` of them and one CPU, and there are as many workers as fit, if no number is
    given. Without GPUs, one worker by default; the workers share the free CPUs evenly, apart from the reserved ones.

    Args:
        nodes: the resources of each node, under Ray's names.
        workers: how many; None for the default.
        gpus: of each worker, if the cluster has any.
        reserved_cpus: CPUs that must stay free for other tasks, such as reading.
        free_cpus: CPUs that no other job holds; None for all.

    Raises:
        ConfigError: the cluster is too small, with the numbers.
    """
    n_cpus = sum(node.get("CPU", 0.0) for node in nodes)
    n_gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1, not {workers}")
    if n_gpus > 0 and gpus > 0:
        most = min(fits(nodes, 1, gpus), int(n_cpus - reserved_cpus))
        wanted = max(most, 1) if workers is None else workers
        if wanted > most:
            each = f"{gpus:g} GPU{'s' if gpus > 1 else ''} and 1 CPU"
            raise ConfigError(_too_small(wanted, each, reserved_cpus, n_cpus, n_gpus, most, len(nodes)))
        return WorkerResources(wanted, 1, gpus)
    wanted = workers or 1
    most = int(n_cpus - reserved_cpus)
    if wanted > most:
        raise ConfigError(_too_small(wanted, "1 CPU", reserved_cpus, n_cpus, n_gpus, most, len(nodes)))
    usable = n_cpus if free_cpus is None else min(free_cpus, n_cpus)
    cpus = max((usable - reserved_cpus) // wanted, 1)
    while cpus > 1 and fits(nodes, cpus, 0) < wanted:
        cpus -= 1
    return WorkerResources(wanted, cpus, 0)


def _too_small(wanted: int, each: str, reserved: float, n_cpus: float, n_gpus: float, most: int, n_nodes: int) -> str:
    workers = "1 worker needs" if wanted == 1 else f"{wanted} workers need"
    beside = f", and {reserved:g} for reading" if reserved else ""
    has = f"{n_cpus:g} CPUs and {n_gpus:g} GPUs on {n_nodes} node{'s' if n_nodes != 1 else ''}"
    advice = f"use at most {most}" if most > 0 else "add nodes"
    return f"the Ray cluster is too small: {workers} {each} each{beside}, but it has {has}; {advice}"


def node_resources(ray: Any) -> list[dict[str, float]]:
    """The resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def path_on_workers(name: str | Path) -> str:
    """A local path as workers need it, which may start in other folders; Hub ids and the like are unchanged."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else str(name)


def n_free_cpus(ray: Any) -> float:
    """The CPUs that no job holds now."""
    return float(ray.available_resources().get("CPU", 0.0))


def wait_for_room(ray: Any, need: WorkerResources, reserved_cpus: float = 0.0, patience_s: float = _PATIENCE_S) -> None:
    """Check that what a job needs is free now, waiting briefly for another job's end.

    Raises:
        GenerationError: other jobs hold it, with the numbers.
    """
    until = time.monotonic() + patience_s
    wanted = {"CPU": need.cpus * need.workers + reserved_cpus, "GPU": need.gpus * need.workers}
    while True:
        free = ray.available_resources()
        if all(free.get(name, 0.0) >= share for name, share in wanted.items()):
            return
        if time.monotonic() > until:
            raise GenerationError(
                f"the Ray cluster is busy: {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs are needed, but "
                f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs are free; wait for other jobs, or "
                "use fewer workers"
            )
        time.sleep(0.2)
