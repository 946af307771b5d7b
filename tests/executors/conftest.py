"""A real Ray cluster of this machine, which all tests of a module share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with eight logical CPUs, whatever this machine has; after it, no process of Ray is left."""
    from ragalign.executors.cluster import import_ray, quiet_warnings

    with quiet_warnings():
        ray = import_ray()
        ray.init(num_cpus=8, address="local", include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    yield ray
    with quiet_warnings():
        ray.shutdown()
    until = time.monotonic() + 30
    while left := ray_processes():
        assert time.monotonic() < until, left
        time.sleep(0.2)


def ray_processes() -> list[str]:
    """The processes of Ray that this one has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with_name = " ".join(process.cmdline()) if process.is_running() else ""
        if "ray::" in with_name or "/ray/" in with_name:
            found.append(with_name)
    return found
