"""What every request passes: keys, rate limits, headers, counting, and a last word on errors."""

from __future__ import annotations

import secrets
import traceback
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragalign.errors import RagalignError
from ragalign.serving.errors import ApiError, from_library
from ragalign.serving.keys import Keys, RateLimit, check_admin
from ragalign.serving.leaving import ClientLeftError
from ragalign.serving.service import log

if TYPE_CHECKING:
    from ragalign.serving.service import Service

_KNOWN = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/admin/reload",
    "/health",
    "/ready",
    "/metrics",
    "/",
)


class Gate:
    """ASGI middleware around all endpoints of a `Service`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        settings = service.settings
        self._keys = Keys(settings.api_keys)
        self._admin_key = settings.admin_key
        self._rate = RateLimit(settings.limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None
        request_id = secrets.token_hex(8)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, noting)
        except ClientLeftError:
            self._service.metrics.disconnects.inc()
            status = status or 499
        except Exception as error:
            told = _told(error, request_id)
            self._service.metrics.errors.labels(told.code or str(told.status)).inc()
            if status is None:
                await _answer(told, noting)
        finally:
            path = _path(scope)
            endpoint = path if path in _KNOWN else "other"
            self._service.metrics.requests.labels(endpoint, str(status or 499)).inc()

    def _check(self, scope: Scope) -> None:
        path = _path(scope)
        headers = Headers(scope=scope)
        client = scope["client"][0] if scope.get("client") else None
        if path.startswith("/admin"):
            check_admin(self._admin_key, headers, client)
        elif path.startswith("/v1/") and scope["method"] != "OPTIONS":
            key = self._keys.check(headers.get("authorization"))
            if scope["method"] == "POST":
                self._rate.take(key or client or "")


def _path(scope: Scope) -> str:
    """The path below the point where the service is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root) else path


def _told(error: Exception, request_id: str) -> ApiError:
    """What a client hears; of what nobody expected, the log has the place, and the client a number to quote."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RagalignError):
        return from_library(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    last = traceback.extract_tb(error.__traceback__)[-1]
    log.error("request %s failed in %s:%s: %s: %s", request_id, last.filename, last.lineno, type(error).__name__, error)
    return ApiError(500, f"an error that should not be; the service's log has it under {request_id}", code="internal")


async def _answer(error: ApiError, send: Send) -> None:
    body = error.encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    if error.status in (408, 413, 415):  # the rest of the body is not read
        headers["Connection"] = "close"
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
