"""Connecting to a Ray cluster."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign.errors import ConfigError
from ragalign.generation.base import one_line

_CONNECT_S = 10.0
_NO_CLIENT = "which does not stream answers: run this on a node of the cluster, with auto or HOST:PORT"
_ADVICE = "start one with `ray start --head`, or use local"
# Ray reads these when it is imported, and a local cluster when it starts.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise Ray warns that it hides the GPUs from actors that ask for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Calls to a dead actor whose results nobody fetches would print tracebacks.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # On a machine whose memory is full of other programs, a local cluster would kill its own workers for ever.
    "RAY_memory_monitor_refresh_ms": "0",
}


@contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a cluster, and yield the module `ray`.

    Args:
        address: ``local`` starts a cluster on this machine and ends it afterwards; ``auto`` connects to the cluster of
            this machine or of RAY_ADDRESS; anything else is the HOST:PORT of a head node, such as ``10.0.0.1:6379``.
            In a process that is connected already, that cluster is used and stays. Ray Client (``ray://``) cannot be
            used: it does not stream answers.

    Raises:
        ConfigError: no cluster can be reached there, or only through Ray Client.
        MissingDependencyError: Ray is not installed.
    """
    with quiet_warnings():
        ray = import_ray()
        was_connected = ray.is_initialized()
        if not was_connected:
            _init(ray, address)
        elif ray.util.client.ray.is_connected():
            raise ConfigError(f"this process is connected through Ray Client, {_NO_CLIENT}")
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


def _located(ray: Any, address: str) -> tuple[str, str]:
    """The address that ``auto`` means, and how to name it in messages."""
    if address != "auto":
        return address, address
    if (named := os.environ.get("RAY_ADDRESS", "auto")) not in ("", "auto"):
        return named, f"{named} (from RAY_ADDRESS)"
    try:
        found = str(ray._private.services.get_ray_address_from_environment("auto", None))
    except ConnectionError:
        raise ConfigError(f"no Ray cluster runs on this machine, and RAY_ADDRESS names none; {_ADVICE}") from None
    return found, f"{found} (the last one started here)"


def _check_reachable(address: str, shown: str) -> None:
    """Refuse an address that nothing listens on: Ray itself tries for minutes.

    Raises:
        ConfigError: nothing listens there, or the address has no port or is one for Ray Client.
    """
    if "://" in address:
        raise ConfigError(f"no Ray cluster at {shown}: this is a Ray Client or Ray Jobs address, {_NO_CLIENT}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"the address of a Ray cluster is local, auto or HOST:PORT, not {shown}")
    # The C library takes a port modulo 65,536, and so would find whatever listens there.
    if not 0 < int(port) < 2**16:
        raise ConfigError(f"no Ray cluster at {shown}: a port is between 1 and 65535")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # a name that is none
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"no Ray cluster at {shown}: {reason}; {_ADVICE}") from None


def _init(ray: Any, address: str) -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    address, shown = _located(ray, address)
    if address != "local":
        _check_reachable(address, shown)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray's errors here share no class
        raise ConfigError(f"no Ray cluster at {shown}: {one_line(error, 160)}; {_ADVICE}") from None


def path_on_workers(name: str | Path) -> str:
    """A local path made absolute, since workers may start in other folders; Hub ids and the like are unchanged."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else str(name)
