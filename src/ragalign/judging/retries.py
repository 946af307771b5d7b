"""Retries of failed requests: which errors to retry, and how long to wait."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from ragalign.errors import ConfigError

# In addition to all 5xx: request timeout, conflict, too early and rate limit.
_RETRYABLE = frozenset({408, 409, 425, 429})
# Errors of the judge, not of the question: a missing or wrong key, no credit, an unknown model or address.
_FATAL = frozenset({301, 302, 307, 308, 401, 402, 404, 405})
_FATAL_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "invalid_api_key", "account_deactivated"})


class RequestError(Exception):
    """A request without a reply; the message gives the reason, without the API key."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryableError(RequestError):
    """A temporary failure; `retry_after_s` is the endpoint's Retry-After in seconds."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class FinalError(RequestError):
    """A permanent failure of this question; `error` has the endpoint's ``message``, ``code`` and ``param``."""

    def __init__(self, reason: str, error: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.error = error or {}


class FatalError(RequestError):
    """A failure that would probably affect all questions to this judge."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with full jitter (Brooker 2015, AWS Architecture Blog).

    Before attempt k + 1 it waits a random time between 0 and min(max_wait_s, base_s * 2 ** (k - 1)), but at least
    the endpoint's Retry-After.

    Attributes:
        max_attempts: maximum attempts per question, including the first.
        base_s: maximum wait after the first failure, in seconds.
        max_wait_s: maximum wait in seconds, unless the endpoint asks for a longer one.
        max_retry_after_s: give up if Retry-After is longer than this.
    """

    max_attempts: int = 10
    base_s: float = 0.5
    max_wait_s: float = 60.0
    max_retry_after_s: float = 600.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or min(self.base_s, self.max_wait_s, self.max_retry_after_s) < 0:
            raise ConfigError("a retry policy needs at least one attempt, and waits of at least 0 seconds")

    def wait_s(self, attempt: int, retry_after_s: float | None, generator: random.Random) -> float | None:
        """Seconds to wait after failed attempt `attempt` (from 1); None to give up."""
        if attempt >= self.max_attempts:
            return None
        # Bound the exponent, so that a huge max_attempts cannot overflow.
        jittered = generator.uniform(0, min(self.max_wait_s, self.base_s * 2 ** min(attempt - 1, 60)))
        if retry_after_s is None:
            return jittered
        if retry_after_s > self.max_retry_after_s:
            return None
        # Add jitter, so that requests with the same Retry-After do not return at once.
        return retry_after_s + min(jittered, self.base_s)


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """The Retry-After header in seconds from now (RFC 9110, section 10.2.3): a number, or an HTTP date."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError, OverflowError):
            return None
    # NaN is not a time; a date in the past means now.
    return max(0.0, seconds) if seconds == seconds else None


def failure(status: int, body: Any, headers: Mapping[str, str]) -> RequestError:
    """Classify an HTTP error (or an error object with status 200).

    Args:
        status: the HTTP status.
        body: the parsed JSON body, or None.
        headers: with lower-case names.
    """
    message, code = _described(body)
    reason = f"HTTP {status}" + (f": {message}" if message else "")
    if status in _FATAL or code in _FATAL_CODES:
        return FatalError(reason)
    if status in _RETRYABLE or status >= 500:
        # Messages of temporary failures can differ each time, so group their counts by status.
        return RetryableError(f"HTTP {status}", retry_after_s(headers))
    return FinalError(reason, _error_object(body))


def _described(body: Any) -> tuple[str, str]:
    """Message and code of an OpenAI-style error body."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return _short(_error_object(body).get("message", "")), ""
    message, code = error.get("message"), error.get("code") or error.get("type")
    return _short(message) if isinstance(message, str) else "", code if isinstance(code, str) else ""


def _error_object(body: Any) -> Mapping[str, Any]:
    """``message``, ``code`` and ``param`` of an error body in any common form."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error")
    if isinstance(error, dict):
        return error
    # Other servers put a text under `error`, or FastAPI's list under `detail`.
    found = next((body[name] for name in ("error", "message", "detail") if body.get(name)), "")
    return {"message": found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"
