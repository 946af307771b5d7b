"""Running the application: uvicorn, signals, draining."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ragalign._optional import require
from ragalign.errors import ConfigError

if TYPE_CHECKING:
    from types import FrameType

    from fastapi import FastAPI

    from ragalign.serving.service import Service

# Streams of small pieces; a connection that idles longer than this is closed.
_KEEPALIVE_S = 75


@dataclass
class Hangups:
    """Whether SIGHUP has arrived before the service could reload."""

    any: bool = False


@contextmanager
def remembered_hangups() -> Iterator[Hangups]:
    """Remember SIGHUP, which would end a process that is still loading; pass the result to `run`.

    Enter this first, in the main thread.
    """
    hangups = Hangups()
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup; an engine's process inherits it
        yield hangups
        return

    def remember(*_: object) -> None:
        hangups.any = True

    before = signal.signal(signal.SIGHUP, remember)
    try:
        yield hangups
    finally:
        signal.signal(signal.SIGHUP, before)


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket before anything slow is loaded; port 0 chooses a free one.

    Raises:
        ConfigError: the address is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from None


def find_services(app: Any) -> list[Service]:
    """The services of an application: its own, and those of the applications mounted in it, at any depth."""
    from starlette.routing import Host, Mount

    from ragalign.serving.service import Service

    own = getattr(getattr(app, "state", None), "service", None)
    mounted = [route.app for route in getattr(app, "routes", ()) if isinstance(route, Mount | Host)]
    found = [own] if isinstance(own, Service) else []
    return found + [service for inner in mounted for service in find_services(inner)]


def make_config(app: FastAPI, *, drain_s: float = 60.0, access_log: bool = False) -> Any:
    """Uvicorn's configuration for the service, or for an application that mounts it.

    The limits of the service hold for every connection: those of the first, where several are mounted, and the default
    limits where none is found.

    Raises:
        MissingDependencyError: the ``serve`` extra is not installed.
    """
    uvicorn: Any = require("uvicorn", "the service")
    from ragalign.serving.protocol import BoundedProtocol
    from ragalign.serving.settings import Limits

    services = find_services(app)
    limits = services[0].settings.limits if services else Limits()
    return uvicorn.Config(
        app,
        http=partial(BoundedProtocol, limits),
        h11_max_incomplete_event_size=limits.max_header_bytes,
        # The service has no WebSockets; without this, a handshake would bypass all checks.
        ws="none",
        access_log=access_log,
        log_config=None,
        timeout_keep_alive=_KEEPALIVE_S,
        timeout_graceful_shutdown=drain_s,
        server_header=False,
        # The client's address decides who can reload; a header that any client can send must not.
        proxy_headers=False,
        lifespan="on",
    )


def run(
    app: FastAPI,
    listener: socket.socket,
    *,
    drain_s: float = 60.0,
    delay_s: float = 0.0,
    access_log: bool = False,
    hangups: Hangups | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then finish accepted requests, for at most `drain_s` seconds.

    From the first of these signals on, ``/ready`` is false. After SIGTERM, new requests are still answered for
    `delay_s`, the time that a load balancer needs to notice. A second SIGTERM ends the delay, a second SIGINT stops
    immediately. SIGHUP reloads the index; so do earlier `hangups`, once: the index may have changed since it loaded.

    Raises:
        MissingDependencyError: the ``serve`` extra is not installed.
    """
    uvicorn: Any = require("uvicorn", "the service")
    config = make_config(app, drain_s=drain_s, access_log=access_log)

    class Server(uvicorn.Server):  # type: ignore[misc]
        """Announces a shutdown before it begins."""

        is_leaving = False

        def handle_exit(self, number: int, frame: FrameType | None) -> None:
            for service in find_services(app):
                service.is_draining = True
            if number == signal.SIGTERM and delay_s > 0 and not self.is_leaving:
                self.is_leaving = True
                loop.call_soon_threadsafe(loop.call_later, delay_s, partial(super().handle_exit, number, frame))
            else:
                super().handle_exit(number, frame)

    server = Server(config)

    def reload() -> None:
        for service in find_services(app):
            service.reload_soon()

    async def serve() -> None:
        loop.add_signal_handler(signal.SIGHUP, reload)
        if hangups is not None and hangups.any:
            reload()
        await server.serve(sockets=[listener])

    # uvicorn raises the signals that ended it again at the end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        loop = runner.get_loop()
        runner.run(serve())
