"""Which Host headers are let in: no web page can reach a service without keys under a name of its own."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures.raw_http import exchange, request
from fixtures.scripted_server import ScriptedServer

from ragalign.errors import ConfigError
from ragalign.serving import ServingSettings
from ragalign.serving.errors import ApiError
from ragalign.serving.hosts import HostCheck


def status(*hosts: str, server: str = "127.0.0.1", allowed: tuple[str, ...] = (), has_keys: bool = False) -> int:
    """The status that a request with these Host headers gets; 200 for one that is let in."""
    scope: Any = {"server": (server, 8000), "headers": [(b"host", host.encode("latin-1")) for host in hosts]}
    try:
        HostCheck(allowed, has_keys=has_keys).check(scope)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LocalHost", "localhost:8000", "localhost.", "localhost.:1", "localhost:"),
        *("127.0.0.1", "127.0.0.1:9", "127.8.9.1", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"),
    ],
)
def test_loopback_names_are_let_in(host: str) -> None:
    assert status(host) == 200
    assert status(host, server="::1") == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "EVIL.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost"),
        *("192.168.1.5", "[2001:db8::1]", "0.0.0.0", "[::]", "127.1", "2130706433", "0x7f000001", "sub.localhost"),
        *("localhost.localdomain", "a-b.example", "xn--nxasmq6b.example"),
    ],
)
def test_other_hosts_are_not(host: str) -> None:
    assert status(host) == 403


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            " ",
            "localhost evil",
            "localhost, evil.example",
            "localhost@evil.example",
            "http://localhost",
            "localhost/",
        ),
        *("[::1", "::1", "[::1]evil", "[127.0.0.1]", "localhost:80:80", "localhost:port", "localhost:123456", "."),
        *("localhost..", "a..b", "\u00e9.example", "[::1%eth0]", "-", "localhost\x00", "*", "*.example.org"),
    ],
)
def test_what_is_no_host_is_refused(host: str) -> None:
    assert status(host) == 400
    assert status(host, allowed=("example.org",), has_keys=True) == 400


def test_one_header_it_must_be() -> None:
    assert status() == 400
    assert status("localhost", "localhost") == 400
    assert status("localhost", "evil.example") == 400


def test_where_hosts_cannot_be_known_nothing_is_checked() -> None:
    assert status("gpu.example.org", server="10.0.0.7") == 200
    assert status(server="10.0.0.7") == 200
    assert status("evil.example", has_keys=True) == 200


def test_given_hosts_are_checked_everywhere() -> None:
    allowed = ("API.example.org.", "*.lan.example", "2001:db8::1", "192.168.1.5")
    for server, has_keys in (("127.0.0.1", False), ("10.0.0.7", False), ("10.0.0.7", True)):
        options: dict[str, Any] = {"server": server, "allowed": allowed, "has_keys": has_keys}
        for host in ("api.example.org", "api.EXAMPLE.org.:443", "a.lan.example", "a.b.lan.example", "[2001:DB8::1]:8"):
            assert status(host, **options) == 200
        assert status("192.168.1.5:80", **options) == 200
        assert status("localhost", **options) == 200
        for host in ("evil.example", "example.org", "lan.example", "xlan.example", "api.example.org.evil.example"):
            assert status(host, **options) == 403
    # A probe that asks the very address that it reaches cannot be a web page's.
    assert status("10.0.0.7:8000", server="10.0.0.7", allowed=allowed) == 200
    assert status("10.0.0.8:8000", server="10.0.0.7", allowed=allowed) == 403
    assert status("anything.example", server="10.0.0.7", allowed=("*",)) == 200


@pytest.mark.parametrize("host", ["", "http://a.example", "a b", "a.example:80:80", "*.", "*a.example", "a.*.example"])
def test_an_allowed_host_is_a_name(host: str) -> None:
    with pytest.raises(ConfigError, match="allowed host"):
        ServingSettings(allowed_hosts=(host,))


def test_a_page_of_another_name_reaches_nothing(upstream_service: Any) -> None:
    with ScriptedServer() as server:
        with upstream_service(server) as running:
            for path in ("/", "/v1/models", "/health", "/metrics", "/openapi.json", "/admin/reload"):
                for method in ("GET", "POST", "OPTIONS"):
                    assert exchange(running.url, request(method, path, host="evil.example"))[0] == 403
            assert exchange(running.url, request("GET", "/v1/models", host=None))[0] == 400
            twice = request("GET", "/v1/models", headers=("Host: evil.example",))
            assert exchange(running.url, twice)[0] == 400
            assert exchange(running.url, b"GET /v1/models HTTP/1.0\r\n\r\n")[0] == 400
            found, error = exchange(running.url, request("GET", "/v1/models", host="evil.example"))
            assert found == 403
            assert "--allowed-host" in error["message"]
            assert exchange(running.url, request("GET", "/v1/models", host="localhost:1"))[0] == 200
        with upstream_service(server, settings=ServingSettings(allowed_hosts=("good.example",))) as running:
            assert exchange(running.url, request("GET", "/v1/models", host="good.example"))[0] == 200
            assert exchange(running.url, request("GET", "/v1/models", host="evil.example"))[0] == 403
        assert not server.received
