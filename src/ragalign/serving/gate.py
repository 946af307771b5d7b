"""The first checks of every request (head, Host, key and rate), and error responses."""

from __future__ import annotations

import secrets
import traceback
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ragalign.serving.disconnects import ClientLeftError
from ragalign.serving.errors import ApiError, as_api_error, request_id, set_request_id
from ragalign.serving.hosts import HostCheck
from ragalign.serving.keys import Keys, RateLimit, check_admin
from ragalign.serving.service import log
from ragalign.serving.settings import Limits

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
    "/openapi.json",
    "/",
)
# Paths without a key: the page, which has no data, and probes. All others need one, even paths that do not exist.
_OPEN = frozenset({"/", "/inspector.js", "/inspector.css", "/health", "/ready"})


class Gate:
    """ASGI middleware around all endpoints of a `Service`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        settings = service.settings
        self._limits = settings.limits
        self._keys = Keys(settings.api_keys)
        self._hosts = HostCheck(settings.allowed_hosts, has_keys=bool(settings.api_keys))
        opened = {"/metrics": settings.open_metrics, "/openapi.json": settings.open_schema}
        self._open = _OPEN | {path for path, is_open in opened.items() if is_open}
        self._admin_key = settings.admin_key
        self._rate = RateLimit(settings.limits.requests_per_minute)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or respond with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status: int | None = None
        set_request_id(scope, secrets.token_hex(8))

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id(scope)
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, noting)
        except ClientLeftError:
            self._service.metrics.disconnects.inc()
            status = status or 499
        except Exception as error:
            told = as_api_error(error, scope)
            _log(error, told, request_id(scope))
            self._service.metrics.errors.labels(told.code or str(told.status)).inc()
            if status is None:
                await _answer(told, noting)
        finally:
            path = _path(scope)
            endpoint = path if path in _KNOWN else "other"
            self._service.metrics.requests.labels(endpoint, str(status or 499)).inc()

    def _check(self, scope: Scope) -> None:
        _check_head(scope, self._limits)
        self._hosts.check(scope)
        path = _path(scope)
        headers = Headers(scope=scope)
        client = scope["client"][0] if scope.get("client") else None
        if path.startswith("/admin"):
            check_admin(self._admin_key, headers, client)
        elif path not in self._open:
            key = self._keys.check(headers.get("authorization"))
            if path.startswith("/v1/") and scope["method"] == "POST":
                self._rate.take(key or client or "")


def _check_head(scope: Scope, limits: Limits) -> None:
    """Reject a request line or headers beyond the limits, before they are interpreted.

    Raises:
        ApiError: 414 or 431.
    """
    url = len(scope.get("raw_path") or scope["path"]) + len(scope.get("query_string", b""))
    if url > limits.max_url_bytes:
        raise ApiError(414, f"the URL is longer than {limits.max_url_bytes:,} bytes")
    headers = scope["headers"]
    if len(headers) > limits.max_headers:
        raise ApiError(431, f"more than {limits.max_headers} header fields are not allowed")
    if sum(len(name) + len(value) for name, value in headers) > limits.max_header_bytes:
        raise ApiError(431, f"the header fields are longer than {limits.max_header_bytes:,} bytes in all")


def _path(scope: Scope) -> str:
    """The path below the mount point of the service."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(root) else path


def _log(error: Exception, told: ApiError, id_: str) -> None:
    """Log errors of the service with their location, and errors of engines and servers."""
    if told.code == "internal":
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind, message = type(error).__name__, " ".join(ascii(str(error)).split())
        log.error("request %s failed in %s:%s: %s: %s", id_, last.filename, last.lineno, kind, message)
    elif told.status in (502, 503, 504):
        log.warning("request %s: %s: %s", id_, told.code, told.message)


async def _answer(error: ApiError, send: Send) -> None:
    body = error.encode()
    # The rest of a rejected request is not read, so its connection cannot be reused.
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    if error.status in (408, 413, 414, 415, 431):
        headers["Connection"] = "close"
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
