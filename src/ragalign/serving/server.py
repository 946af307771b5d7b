"""Running the application: uvicorn, signals, draining."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING, Any

from ragalign._optional import require
from ragalign.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

# Streams of small pieces; a connection that idles longer than this is closed.
_KEEPALIVE_S = 75


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before anything slow is loaded; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"cannot listen on {host} port {port}: {reason}; choose another with --port") from None


def run(app: FastAPI, listener: socket.socket, *, drain_s: float = 60.0, access_log: bool = False) -> None:
    """Serve until SIGINT or SIGTERM, then finish what was accepted, for at most `drain_s` seconds.

    SIGHUP opens the index anew. A second SIGINT ends at once.

    Raises:
        MissingDependencyError: the ``serve`` extra is not installed.
    """
    uvicorn: Any = require("uvicorn", "the service")
    config = uvicorn.Config(
        app,
        access_log=access_log,
        log_config=None,
        timeout_keep_alive=_KEEPALIVE_S,
        timeout_graceful_shutdown=drain_s,
        server_header=False,
        # The client's address decides who may reload; a header that anybody can send must not.
        proxy_headers=False,
        lifespan="on",
    )
    server = uvicorn.Server(config)

    async def serve() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.state.service.reload_soon)
        await server.serve(sockets=[listener])

    # uvicorn raises the signals that ended it once more when all is done.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve())
