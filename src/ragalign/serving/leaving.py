"""Noticing that a client has gone, and ending its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the work inside as soon as the client disconnects; its request's body must have been read.

    Raises:
        ClientLeftError: it did.
    """
    left = False

    async def listen(scope: asyncio.Timeout) -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        scope.reschedule(asyncio.get_running_loop().time())

    try:
        # A time-out that never comes by itself: it cancels what is inside and nothing else.
        async with asyncio.timeout(None) as scope:
            listener = asyncio.create_task(listen(scope))
            try:
                yield
            finally:
                listener.cancel()
                with suppress(asyncio.CancelledError):
                    await listener
    except TimeoutError:
        if left:
            raise ClientLeftError from None
        raise


class EventStream(Response):
    """Server-sent events from an async generator, which is closed when the client leaves or all is sent."""

    media_type = "text/event-stream"

    def __init__(self, events: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            async with while_connected(receive):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for part in self._events:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()
