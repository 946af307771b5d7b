"""Cancelling the work on a request when its client disconnects or its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from ragalign.serving.errors import ApiError

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client has disconnected."""


async def run_until_disconnect(work: Coroutine[Any, Any, T], receive: Receive, limit_s: float) -> T:
    """Await `work`, cancelling it when the client disconnects or after `limit_s` seconds.

    The work runs in its own task, and only this task is ever cancelled. A timeout in the request's own task could occur
    while the result is being sent, and would then look like a disconnect or an internal error.

    Args:
        work: the work; its errors are raised.
        receive: the request's receive function; its body must have been read.
        limit_s: time limit in seconds.

    Raises:
        ClientLeftError: the client disconnected.
        ApiError: 504, the time limit was exceeded.
    """
    task = asyncio.create_task(work)
    listener = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, listener}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        has_left = listener.done() and not task.done()
    finally:
        task.cancel()
        listener.cancel()
        await asyncio.wait({task, listener})
        if not listener.cancelled():
            listener.exception()  # ignore it: the connection is gone
    if has_left:
        if not task.cancelled():
            task.exception()
        raise ClientLeftError
    if task.cancelled():
        raise ApiError(504, f"the answer took longer than {limit_s:g} s", code="timeout")
    return task.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
