"""Server-sent events as a response."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ragalign.serving.disconnects import ClientLeftError, run_until_disconnect
from ragalign.serving.errors import as_api_error
from ragalign.serving.shapes import DONE, event

Write = Callable[[bytes], Awaitable[None]]

# Seconds that a client has to read the last event.
_LAST_EVENT_S = 5.0


class EventStream(Response):
    """A stream whose status is 200 from its first event; earlier errors have their own status.

    A later error becomes an event before the end of the stream, and is raised again, so that it is counted and logged.

    Args:
        write_events: writes the events, one per call.
        limit_s: time limit in seconds for the whole stream.
    """

    media_type = "text/event-stream"

    def __init__(self, write_events: Callable[[Write], Coroutine[Any, Any, None]], limit_s: float) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._write_events = write_events
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        has_begun = False

        async def write(part: bytes) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": part, "more_body": True})

        try:
            await run_until_disconnect(self._write_events(write), receive, self._limit_s)
        except ClientLeftError:
            raise
        except Exception as error:
            if has_begun:
                last = event(as_api_error(error, scope).body) + DONE
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LAST_EVENT_S):
                        await send({"type": "http.response.body", "body": last, "more_body": False})
            raise
        await send({"type": "http.response.body", "body": b"", "more_body": False})
