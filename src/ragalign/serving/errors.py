"""Errors as OpenAI's API gives them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping
from typing import Any

from ragalign.errors import BudgetError, ConfigError, DataError, GenerationError, RagalignError
from ragalign.generation.asynchronous import RefusedError, TookTooLongError, UnavailableError

_REQUEST_ID = "ragalign.request_id"


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: of HTTP.
        message: what was wrong and what to do, in one line.
        param: the field of the request that it is about, such as ``messages[1].content``.
        code: for programs, such as ``context_length_exceeded``.
        retry_after_s: when another try makes sense.
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
        # One line of valid text, even where it repeats what a client or a server sent.
        message = " ".join(message.encode("utf-8", "backslashreplace").decode().split())
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        error = {"message": self.message, "type": _type(self.status), "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> Mapping[str, str]:
        """Retry-After, and what 401 must say."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def encode(self) -> bytes:
        """The body as ASCII, whatever a client sent that is repeated in it."""
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
    """Any error as the API gives it. An unexpected error shows the request's id and nothing else."""
    from starlette.exceptions import HTTPException

    if isinstance(error, ApiError):
        return error
    if isinstance(error, RagalignError):
        return from_library(error)
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    return ApiError(500, f"internal error; the service's log has it under {request_id(scope)}", code="internal")


def request_id(scope: Mapping[str, Any]) -> str:
    """The id of a request, which its answer has as ``X-Request-Id``."""
    return str(scope.get(_REQUEST_ID, ""))


def set_request_id(scope: MutableMapping[str, Any], id_: str) -> None:
    """Give a request its id."""
    scope[_REQUEST_ID] = id_


def from_library(error: RagalignError) -> ApiError:
    """An error of the library as the API gives it."""
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
