"""Checking the URLs of servers before they are asked."""

from __future__ import annotations

from urllib.parse import urlsplit

SERVER_URL = "http:// or https:// with a host, and a port from 1 to 65535 if any"
"""A description of what `is_server_url` accepts, for messages."""


def is_server_url(url: str) -> bool:
    """Whether a URL begins with http:// or https:// and names a host, and its port, if any, is from 1 to 65535.

    The C library takes a port modulo 65,536, so a larger one would reach another server.
    """
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
