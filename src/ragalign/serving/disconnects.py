"""Work on a request that ends when its client leaves or its time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from ragalign.serving.errors import ApiError

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client has disconnected; nobody waits for the answer."""


async def attend(work: Coroutine[Any, Any, T], receive: Receive, limit_s: float) -> T:
    """The result of `work`, which is cancelled when the client disconnects or after `limit_s` seconds.

    The work runs in a task of its own, and only that task is ever cancelled. A time-out inside the request's own task
    could strike while the result is already on its way out, and would then look like a disconnect or an internal error.

    Args:
        work: what to do; its own errors pass through.
        receive: of the request, whose body must have been read.
        limit_s: seconds.

    Raises:
        ClientLeftError: the client disconnected.
        ApiError: 504, the time was up.
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
            listener.exception()  # whatever it was: the connection is gone
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
