"""The check of the Host header, which keeps other web pages out of a service without keys.

A page of ``evil.example`` can let its own name resolve to 127.0.0.1 (DNS rebinding). A browser then takes this service
for that page's own server and lets it read every answer. But it still sends the page's name as ``Host``, so that is
where such a request shows itself.

Without API keys, a request that comes in on a loopback address must name ``localhost`` or a loopback address; on other
addresses, where clients use names that this service cannot know, nothing is checked unless hosts are given. Given
hosts (``--allowed-host``) are checked everywhere, with keys too. A request can always name ``localhost``, a loopback
address, or the very address that it came in on: no DNS answer can turn a page's name into those. Ports, upper case and
a final dot make no difference.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ragalign.errors import ConfigError
from ragalign.serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Scope

_HOST = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253})))(?::[0-9]{0,5})?"
)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class HostCheck:
    """Refuses requests whose Host header names another server.

    Args:
        allowed: names or addresses, without ports; ``*.example.org`` allows all names below it, ``*`` any host.
        has_keys: whether requests need an API key.

    Raises:
        ConfigError: an allowed host is neither a name nor an address.
    """

    def __init__(self, allowed: Iterable[str], *, has_keys: bool) -> None:
        self._allowed = frozenset(_allowed(host) for host in allowed)
        self._has_keys = has_keys

    def check(self, scope: Scope) -> None:
        """Check the Host header of a request.

        Raises:
            ApiError: 400, the header is missing, repeated or malformed; 403, the host is not allowed.
        """
        address = _address(scope["server"][0]) if scope.get("server") else None
        on_loopback = address is not None and _is_loopback(address)
        if not self._allowed and (self._has_keys or not on_loopback):
            return
        given = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if len(given) != 1:
            raise ApiError(400, "send exactly one Host header", code="invalid_host")
        host = _host(given[0].decode("latin-1"))
        if host is None:
            raise ApiError(400, "the Host header is malformed", code="invalid_host")
        if not self._is_allowed(host, address):
            shown = "its hosts" if self._allowed else "localhost"
            raise ApiError(
                403,
                f"this service answers to {shown} only, not to {host}; its operator can add it with --allowed-host",
                code="host_not_allowed",
            )

    def _is_allowed(self, host: str, address: _Address | None) -> bool:
        if host == "localhost" or host in self._allowed or "*" in self._allowed:
            return True
        named = _address(host)
        if named is not None:
            return _is_loopback(named) or _plain(named) == (address and _plain(address))
        labels = host.split(".")
        return any("*." + ".".join(labels[number:]) in self._allowed for number in range(1, len(labels)))


def _allowed(given: str) -> str:
    if given == "*":
        return given
    is_pattern = given.startswith("*.")
    host = _host(f"[{given}]" if given.count(":") > 1 and not given.startswith("[") else given[2 * is_pattern :])
    if host is None:
        raise ConfigError(f"allowed host: {given!r} is neither a name, such as gpu.example.org, nor an address")
    return f"*.{host}" if is_pattern else host


def _host(value: str) -> str | None:
    """The name or address in a Host header, in lower case and without port and final dot; None for anything else."""
    found = _HOST.fullmatch(value)
    if found is None:
        return None
    if found["v6"] is not None:
        address = _address(found["v6"])
        return str(address) if isinstance(address, ipaddress.IPv6Address) else None
    name = found["name"].lower().removesuffix(".")
    return None if not name or ".." in name or name.endswith(".") else name


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _plain(address: _Address) -> _Address:
    """Convert an IPv4-mapped IPv6 address to IPv4."""
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(address: _Address) -> bool:
    return _plain(address).is_loopback
