"""Errors in OpenAI's format: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from ragalign.errors import BudgetError, ConfigError, DataError, GenerationError, RagalignError
from ragalign.generation.asynchronous import RefusedError, TookTooLongError, UnavailableError

_REQUEST_ID = "ragalign.request_id"


class ApiError(Exception):
    """An error response.

    Attributes:
        status: HTTP status.
        message: the reason and what to do, in one line.
        param: the field of the request, such as ``messages[1].content``.
        code: a code for programs, such as ``context_length_exceeded``.
        retry_after_s: seconds after which to retry.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        # One line of valid text, even if it quotes a client or a server.
        message = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        error = {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers Retry-After and, for 401, WWW-Authenticate."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def encode(self) -> bytes:
        """The body as ASCII, which is valid even if it quotes a client."""
        return json.dumps(self.body).encode("ascii")


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 404:
        return "not_found_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def as_api_error(error: Exception, scope: Mapping[str, Any]) -> ApiError:
    """Convert any error to an `ApiError`. An unexpected error shows only the request's id."""
    from starlette.exceptions import HTTPException

    if isinstance(error, ApiError):
        return error
    if isinstance(error, RagalignError):
        return from_library(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    return ApiError(500, f"internal error; the service's log has it under {request_id(scope)}", code="internal")


def request_id(scope: Mapping[str, Any]) -> str:
    """The id of a request, which the response has as ``X-Request-Id``."""
    return str(scope.get(_REQUEST_ID, ""))


def set_request_id(scope: MutableMapping[str, Any], id_: str) -> None:
    """Assign an id to a request."""
    scope[_REQUEST_ID] = id_


def from_library(error: RagalignError) -> ApiError:
    """Convert an error of the library to an `ApiError`."""
    message = str(error)
    if isinstance(error, BudgetError):
        return ApiError(400, message, param="messages", code="context_length_exceeded")
    if isinstance(error, DataError):
        return ApiError(400, message, param="messages")
    if isinstance(error, ConfigError):
        return ApiError(400, message, param="ragalign")
    if isinstance(error, RefusedError):
        return ApiError(400, message, param=error.field)
    if isinstance(error, UnavailableError):
        return ApiError(503, message, code="unavailable", retry_after_s=1)
    if isinstance(error, TookTooLongError):
        return ApiError(504, message, code="timeout")
    if isinstance(error, GenerationError):
        return ApiError(502, message, code="upstream_error")
    return ApiError(500, message)
