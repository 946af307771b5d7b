"""The completion servers that a service sends requests to: which are alive, how busy they are, and which is next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import httpx

from ragalign._urls import SERVER_URL, is_server_url
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._upstream_answers import BadAnswerError, read_answer
from ragalign.generation._upstream_models import ServedModel, missing, parse_models, read_models, too_short
from ragalign.generation.affinity import DEFAULT_MARGIN, ranked
from ragalign.generation.asynchronous import UnavailableError

Affinity = Literal["prefix", "none"]

CONNECT_S = 3.0
_CHECK_S = 6.0

log = logging.getLogger("ragalign.generation")


@dataclass
class Server:
    """A server: its URL up to and including /v1, and its state.

    Attributes:
        url: see above.
        alive: whether it can get requests.
        n_active: answers in progress.
        order: higher the later it was last chosen.
        fault: how it falls short of the servers at the start; it is then a last resort.
    """

    url: str
    alive: bool = True
    n_active: int = 0
    order: int = 0
    fault: str | None = None

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
        ConfigError: no URL is given, one is invalid or given twice, or the margin is negative.
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
        same: set[httpx.URL] = set()
        for server in self._servers:
            if httpx.URL(server.url) in same:
                raise ConfigError(f"the upstream server {server.name} is named twice; name each server once")
            same.add(httpx.URL(server.url))
        self._headers = dict(headers)
        self._margin = margin
        self._turn = count(1)
        self._model: ServedModel | None = None

    @property
    def any_alive(self) -> bool:
        """Whether any server is alive."""
        return any(server.alive for server in self._servers)

    def choose(self, key: str, *, prefer: Server | None = None, avoid: Server | None = None) -> Server:
        """The server for an answer, which counts as active from now on; `release` it afterwards.

        With ``prefix``, this is the best server for the key that is not too busy; with ``none``, the least busy one,
        round-robin among equally busy ones.

        Args:
            key: the key of the prompt.
            prefer: chosen if alive, however busy.
            avoid: not chosen while another one is alive.

        Raises:
            UnavailableError: no server is alive.
        """
        alive = [server for server in self._servers if server.alive]
        if not alive:
            names = ", ".join(server.name for server in self._servers)
            raise UnavailableError(f"no upstream server can answer at the moment ({names})")
        alive = [server for server in alive if server.fault is None] or alive
        alive = [server for server in alive if server is not avoid] or alive
        alive = [server for server in alive if server is prefer] or alive
        chosen = min(alive, key=lambda server: (server.n_active, server.order))
        if self.affinity == "prefix":
            most = chosen.n_active + self._margin
            order = ranked(key, [server.url for server in alive])
            chosen = next(alive[position] for position in order if alive[position].n_active <= most)
        chosen.n_active += 1
        chosen.order = next(self._turn)
        return chosen

    def release(self, server: Server) -> None:
        """Mark an answer from this server as finished."""
        server.n_active -= 1

    def has_other(self, server: Server) -> bool:
        """Whether another server is alive, and as good as this one."""
        return any(
            other.alive and (other.fault is None or server.fault is not None)
            for other in self._servers
            if other is not server
        )

    async def check_forever(self, every_s: float) -> None:
        """Check each server every `every_s` seconds, until cancelled; a slow one does not delay the others' checks."""
        # Each check opens a new connection: an open one does not show whether the server accepts connections.
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(headers=self._headers, limits=limits, trust_env=False) as client:

            async def watch(server: Server) -> None:
                while True:
                    await self._check(client, server)
                    await asyncio.sleep(every_s)

            await asyncio.gather(*(watch(server) for server in self._servers))

    def describe(self, model: str | None, context_length: int | None) -> ServedModel:
        """Ask every server for its models.

        Args:
            model: the model's name; by default the first one of the first server that lists any.
            context_length: a limit on the context length.

        Returns:
            The model, with the smallest context length of all servers that respond and `context_length`.

        Raises:
            ConfigError: a server lists models, but not this one.
            GenerationError: no model is named, and no server reports one.
        """
        with ThreadPoolExecutor(len(self._servers)) as threads:
            answers = list(zip(self._servers, threads.map(self._ask, self._servers), strict=True))
        listed = [(server, models) for server, (_, models) in answers if models]
        if model is None and not listed:
            for server, (status, _) in answers:
                if status in (401, 403):
                    refused = f"{server.name} refuses the API key (status {status})"
                    raise GenerationError(f"{refused}; set RAGALIGN_UPSTREAM_KEY to the key of the upstream servers")
            names = ", ".join(server.name for server in self._servers)
            raise GenerationError(f"no upstream server reports its model ({names}); start one, or set --model")
        name = listed[0][1][0].name if model is None else model
        for server, models in listed:
            if fault := missing(models, name):
                raise ConfigError(f"{server.name} {fault}; serve {name!r} there, or leave this --upstream out")
        found = [each for _, models in listed for each in models if each.name == name]
        lengths = [context_length, *(each.context_length for each in found)]
        shortest = min((length for length in lengths if length is not None), default=None)
        self._model = replace(found[0] if found else ServedModel(name, name), context_length=shortest)
        return self._model

    def _ask(self, server: Server) -> tuple[int | None, list[ServedModel]]:
        """The status of a server and its models; what it cannot say now, the checks find out."""
        try:
            status, models = read_models(server.url, self._headers)
        except (httpx.HTTPError, BadAnswerError) as error:
            server.alive = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            return None, []
        server.alive = status < 500
        return status, models

    async def _check(self, client: httpx.AsyncClient, server: Server) -> None:
        models: list[ServedModel] = []
        try:
            # A busy server can be slow to respond; one that refuses connections is dead, and so is one whose proxy
            # answers in its place.
            async with asyncio.timeout(_CHECK_S):
                timeout = httpx.Timeout(2.0, connect=CONNECT_S)
                async with client.stream("GET", f"{server.url}/models", timeout=timeout) as response:
                    status = response.status_code
                    if status == 200:
                        models = parse_models(await read_answer(response))
        except BadAnswerError:
            pass  # a server need not list its models
        except (httpx.ConnectError, httpx.ConnectTimeout):
            server.alive = False
            return
        except Exception:
            # The server is busy or disappeared, where httpx lets errors of lower layers through. The next check
            # decides; checks must continue after any error.
            return
        # A server can come back with another model than at the start.
        lacks, short = None, None
        if self._model is not None:
            lacks = missing(models, self._model.name)
            short = too_short(models, self._model.name, self._model.context_length)
        fault = lacks or short
        if fault and fault != server.fault:
            until = "until it does" if lacks else "while another server is alive"
            log.warning("%s %s: it gets no requests %s", server.name, fault, until)
        server.fault = fault
        server.alive = status < 500 and lacks is None


def _api_url(url: str) -> str:
    base = url.rstrip("/")
    try:
        if is_server_url(url):
            httpx.URL(base)  # has rules of its own for host names
            return base if base.endswith("/v1") else f"{base}/v1"
    except httpx.InvalidURL:
        pass
    raise ConfigError(f"an upstream's URL must be {SERVER_URL}, not {url!r}")
