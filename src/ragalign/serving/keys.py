"""API keys and rate limits."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from ragalign.serving.errors import ApiError

_MOST_CLIENTS = 10_000


class Keys:
    """API keys, compared in constant time."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, authorization: str | None) -> str | None:
        """Check an Authorization header; returns the start of the key's hash as its name, or None without keys.

        Raises:
            ApiError: 401.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        # Compare all keys, each in constant time.
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(found):
            what = "the API key is invalid" if given else "an API key is required"
            raise ApiError(401, f"{what}; send it as 'Authorization: Bearer KEY'", code="invalid_api_key")
        return given.hex()[:12]


def check_admin(admin_key: str | None, headers: Mapping[str, str], client: str | None) -> None:
    """Allow requests with the admin key or, if there is none, requests from this machine.

    A request through a proxy, or from a web page of another origin, does not count as from this machine.

    Raises:
        ApiError: 401 or 403.
    """
    if admin_key is not None:
        Keys([admin_key]).check(headers.get("authorization"))
        return
    forwarded = any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "origin"))
    if forwarded or headers.get("sec-fetch-site", "none") not in ("none", "same-origin") or not _is_loopback(client):
        raise ApiError(403, "only allowed from the machine itself, or with an admin key: set RAGALIGN_ADMIN_KEY")


class RateLimit:
    """A token bucket per client: a minute's worth at once, refilled evenly. The least recent clients are evicted."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str) -> None:
        """Count one request of `client`.

        Raises:
            ApiError: 429, with the seconds until the next one is allowed.
        """
        if self._per_minute is None:
            return
        now = self._clock()
        left, at = self._buckets.pop(client, (float(self._per_minute), now))
        left = min(float(self._per_minute), left + (now - at) * self._per_minute / 60)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        while len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = max(1, math.ceil((1 - left) * 60 / self._per_minute))
            raise ApiError(
                429,
                f"more than {self._per_minute} requests a minute; try again in {wait} s",
                code="rate_limit_exceeded",
                retry_after_s=wait,
            )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _is_loopback(client: str | None) -> bool:
    try:
        return ipaddress.ip_address(client or "").is_loopback
    except ValueError:
        return False
