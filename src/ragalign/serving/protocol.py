"""HTTP connections with limits on the time for a request, the size of its head, and the number of connections.

uvicorn itself waits for ever for the end of a request, and for a client that reads nothing. These limits hold before
any key is looked at.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ragalign.serving.errors import ApiError
from ragalign.serving.settings import Limits

# Seconds during which the rest of a request's body is read and discarded after an early answer, so that the client sees
# the answer and not a broken connection.
_LINGER_S = 3.0


class BoundedProtocol(H11Protocol):
    """A connection that is closed when its client takes too long.

    - A request's head must be there `head_timeout_s` after its first byte, or after the connection was made.
    - Its body must be there `body_timeout_s` after the head. (The service itself answers 408 a little before that.)
    - A client that reads nothing of its answer for `write_timeout_s` is cut off, however little is left of it.
    - Beyond `max_connections`, the connection that has waited longest for its client gives way to a new one; where all
      are being answered, the new one gets 503.

    Args:
        limits: of the service.
        options: as for uvicorn's own protocol.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._phase: str | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._waits_since: float | None = None
        self._n_lingering = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            self._refuse(ApiError(503, "too many connections", code="unavailable", retry_after_s=1))
            return
        self._enter("head")

    def data_received(self, data: bytes) -> None:
        """Data has arrived."""
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
            self._n_lingering += len(data)
            if self._n_lingering > self._limits.max_body_bytes:
                self.transport.abort()
                return
        if self._phase == "idle":
            self._enter("head")
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """An answer has been sent."""
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection was lost."""
        self._enter(None)
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than the service writes."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection is closed."""
        super().timeout_keep_alive_handler()
        self._follow()

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP, or whose head is too long."""
        too_long = len(self.conn.trailing_data[0]) >= self._limits.max_header_bytes
        limit = f"the head of the request is longer than {self._limits.max_header_bytes:,} bytes"
        self._refuse(ApiError(431, limit) if too_long else ApiError(400, "the request is not valid HTTP"))

    def _follow(self) -> None:
        """Set the deadline for the client's next step."""
        if self.transport.is_closing():
            # It stays open until the client has read the rest, which can be too little to pause writing.
            self._enter("closing")
        elif self.conn.their_state is h11.SEND_BODY:
            self._enter("linger" if self.conn.our_state in (h11.DONE, h11.MUST_CLOSE) else "body")
        elif self.conn.their_state is h11.IDLE:
            if self.conn.trailing_data[0]:
                self._enter("head")
            elif self._phase != "head" or self.cycle is not None:
                self._enter("idle")
        else:
            self._enter(None)

    def _enter(self, phase: str | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        self._n_lingering = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._waits_since = self.loop.time() if phase in ("head", "idle") else None
        limits = self._limits
        seconds = {
            "head": limits.head_timeout_s,
            "body": limits.body_timeout_s + _LINGER_S,
            "linger": _LINGER_S,
            "closing": limits.write_timeout_s,
        }
        # uvicorn times idle connections itself.
        if phase in seconds:
            self._deadline = self.loop.call_later(seconds[phase], self._time_is_up)

    def _time_is_up(self) -> None:
        if self._phase == "head" and self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            seconds = f"{self._limits.head_timeout_s:g}"
            self._refuse(ApiError(408, f"the head of the request did not come in within {seconds} s"))
        else:
            self.transport.abort()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest for its client; returns whether there is one."""
        waiting = [
            (other._waits_since, number, other)
            for number, other in enumerate(self.connections)
            if isinstance(other, BoundedProtocol) and other is not self and other._waits_since is not None
        ]
        if not waiting:
            return False
        _, _, oldest = min(waiting, key=lambda found: found[:2])
        oldest._enter(None)
        oldest.transport.abort()
        return True

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, and close."""
        body = json.dumps(error.body).encode()
        lines = [f"HTTP/1.1 {error.status} ", "content-type: application/json", "connection: close"]
        lines += [
            f"content-length: {len(body)}",
            *(f"{name.lower()}: {value}" for name, value in error.headers.items()),
        ]
        self.transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        self.transport.close()
        self._follow()
