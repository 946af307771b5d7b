"""The completion servers that a service sends requests to: which are alive, how busy they are, and which is next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import httpx

from ragalign._urls import SERVER_URL, is_server_url
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._upstream_answers import MAX_EVENT_BYTES, BadAnswerError, parse_object
from ragalign.generation.affinity import DEFAULT_MARGIN, ranked
from ragalign.generation.asynchronous import UnavailableError

Affinity = Literal["prefix", "none"]

CONNECT_S = 3.0
_CHECK_S = 6.0


@dataclass
class Server:
    """A server: its URL up to and including /v1, and its state."""

    url: str
    alive: bool = True
    n_active: int = 0
    order: int = 0

    @property
    def name(self) -> str:
        """Its URL without the path."""
        parts = httpx.URL(self.url)
        return f"{parts.scheme}://{parts.host}" + (f":{parts.port}" if parts.port else "")


class Servers:
    """The servers, and the choice among them.

    Args:
        urls: such as "http://localhost:8000"; a path other than /v1 must end with the API's /v1.
        headers: sent with every request.
        affinity: ``prefix`` sends requests with the same key to the same server, ``none`` to the least busy one.
        margin: requests that a server can have in excess of the least busy one before ``prefix`` passes it over.

    Raises:
        ConfigError: no URL is given, or one is invalid, or the margin is negative.
    """

    def __init__(
        self,
        urls: Sequence[str],
        headers: Mapping[str, str],
        *,
        affinity: Affinity = "prefix",
        margin: int = DEFAULT_MARGIN,
    ) -> None:
        if not urls:
            raise ConfigError("name the URL of at least one upstream server")
        if affinity not in ("prefix", "none"):
            raise ConfigError(f"affinity must be prefix or none, not {affinity!r}")
        if margin < 0:
            raise ConfigError(f"the affinity's margin must be at least 0, not {margin}")
        self.affinity = affinity
        self._servers = [Server(_api_url(url)) for url in urls]
        self._headers = dict(headers)
        self._margin = margin
        self._turn = count(1)

    @property
    def any_alive(self) -> bool:
        """Whether any server is alive."""
        return any(server.alive for server in self._servers)

    def choose(self, key: str) -> Server:
        """The server for a request, which counts as active from now on; `release` it afterwards.

        With ``prefix``, this is the best server for the key that is not too busy; with ``none``, the least busy one,
        round-robin among equally busy ones.

        Raises:
            UnavailableError: no server is alive.
        """
        alive = [server for server in self._servers if server.alive]
        if not alive:
            names = ", ".join(server.name for server in self._servers)
            raise UnavailableError(f"no upstream server can be reached ({names})")
        chosen = min(alive, key=lambda server: (server.n_active, server.order))
        if self.affinity == "prefix":
            most = chosen.n_active + self._margin
            order = ranked(key, [server.url for server in alive])
            chosen = next(alive[position] for position in order if alive[position].n_active <= most)
        chosen.n_active += 1
        chosen.order = next(self._turn)
        return chosen

    def release(self, server: Server) -> None:
        """A request of this server is over."""
        server.n_active -= 1

    async def check_forever(self, every_s: float) -> None:
        """Check all servers every `every_s` seconds, until cancelled."""
        # Each check opens a new connection: an open one does not show whether the server accepts connections.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(headers=self._headers, limits=limits, trust_env=False) as client:
            while True:
                await asyncio.gather(*(_check(client, server) for server in self._servers))
                await asyncio.sleep(every_s)

    def describe(self, model: str | None) -> dict[str, Any]:
        """The description of the model by the first server that has one; empty for a named model that none describes.

        Raises:
            GenerationError: no model is named, and no server reports one.
        """
        refused = None
        for server in self._servers:
            try:
                cards = _read_cards(f"{server.url}/models", self._headers)
                found = [card for card in cards if model in (None, card["id"])]
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                server.alive = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
                    refused = f"{server.name} refuses the API key (status {error.response.status_code})"
                continue
            if found:
                return dict(found[0])
        if model is None and refused:
            raise GenerationError(f"{refused}; set RAGALIGN_UPSTREAM_KEY to the key of the upstream servers")
        if model is None:
            names = ", ".join(server.name for server in self._servers)
            raise GenerationError(f"no upstream server reports its model ({names}); start one, or set --model")
        return {}


async def _check(client: httpx.AsyncClient, server: Server) -> None:
    try:
        # A busy server can be slow to respond; only a server that refuses connections is dead.
        async with asyncio.timeout(_CHECK_S):
            await client.get(f"{server.url}/models", timeout=httpx.Timeout(2.0, connect=CONNECT_S))
        server.alive = True
    except (httpx.ConnectError, httpx.ConnectTimeout):
        server.alive = False
    except Exception:
        # The server is busy or disappeared, where httpx lets errors of lower layers through. The next check decides;
        # checks must continue after any error.
        return


def _api_url(url: str) -> str:
    if not is_server_url(url):
        raise ConfigError(f"an upstream's URL must be {SERVER_URL}, not {url!r}")
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def _read_cards(url: str, headers: Mapping[str, str]) -> list[dict[str, Any]]:
    """The named models of a server.

    Raises:
        httpx.HTTPError, ValueError, KeyError, TypeError: the server does not list models.
    """
    with httpx.stream("GET", url, headers=dict(headers), timeout=5.0, trust_env=False) as response:
        response.raise_for_status()
        content = b""
        for part in response.iter_bytes():
            content += part
            if len(content) > MAX_EVENT_BYTES:
                raise BadAnswerError("lists too many models")
    cards = parse_object(content)["data"]
    return [card for card in cards if isinstance(card, dict) and isinstance(card["id"], str)]
