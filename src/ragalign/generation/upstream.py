"""Generation for servers with one or more OpenAI-compatible completion servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._completions import EXTENSIONS, decoding_fields, extension_fields
from ragalign.generation._upstream_answers import (
    MAX_TOKEN_CHARACTERS,
    BadAnswerError,
    UpstreamAnswer,
    cut_answer,
    error_message,
    parse_answer,
    read_answer,
    read_error,
    read_events,
)
from ragalign.generation._upstream_servers import CONNECT_S, Affinity, Server, Servers
from ragalign.generation.affinity import DEFAULT_MARGIN, affinity_key
from ragalign.generation.asynchronous import RefusedError, TookTooLongError, UnavailableError, check_supported
from ragalign.generation.base import one_line
from ragalign.generator import ClosableAsyncIterator
from ragalign.stopping import StopFilter, merge_stops
from ragalign.types import Decoding, Delta, Prompt

# Servers close idle connections after 5 s (uvicorn's default) or later; younger ones are safe to reuse.
_KEEPALIVE_S = 4.0
# Allowed events without text, in addition to one per token: some tokens are parts of characters.
_MOST_EMPTY = 1000
_ABOUT_THE_REQUEST = frozenset({400, 404, 413, 422})


@dataclass
class _Samples:
    """The samples of a request: the server that the last of them went to, and how many are in progress."""

    server: Server | None = None
    n_open: int = 0


def _without_reused(delta: Delta, prompt: Prompt) -> Delta:
    """Split the server's cached tokens into those of its prefix cache and those of reused demonstrations."""
    if prompt.reuse is None or delta.n_cached_tokens is None:
        return delta
    n_cached, n_reused = prompt.reuse.split(delta.n_cached_tokens)
    return replace(delta, n_cached_tokens=n_cached, n_reused_tokens=n_reused)


class Upstream:
    """An `AsyncEngine` that sends token ids to ``/v1/completions`` of other servers, such as ``vllm serve``.

    Requests that begin alike go to the same server, whose prefix cache has their beginning (see
    `ragalign.generation.affinity`), unless it has more than `margin` answers in progress in excess of the least busy
    one: then to the next server in the order of their key. Without affinity, a request goes to the least busy server,
    round-robin among equally busy ones. All samples of a request go to one server, which computes their prompt once;
    each counts as an answer. With affinity, the key is also sent as ``X-Session-ID``, for a router in front of servers.

    A server that refuses connections, or whose proxy answers 5xx, gets no requests until a check, every
    `check_every_s`, succeeds. A request that a server did not receive goes to another one; so does, once, one that it
    turned away as overloaded (429, 503). Other failures are not retried.

    Cached tokens are those that the server reports; vLLM reports them with ``--enable-prompt-tokens-details``.

    Args:
        urls: such as "http://localhost:8000"; a path other than /v1 must end with the API's /v1.
        model: the name of the model on the servers; by default that of the first server that answers. All servers that
            answer must have it; one that comes later without it gets no requests.
        api_key: sent as a bearer token.
        timeout_s: seconds without a byte after which an answer times out; for an answer that is not streamed, seconds
            for the whole answer.
        context_length: maximum tokens of prompt and completion together; at most the smallest value that a server
            reports (vLLM does). A server that comes later with less gets requests only if no other is alive.
        check_every_s: seconds between health checks.
        affinity: ``prefix`` or ``none``.
        margin: see above.

    Raises:
        ConfigError: an argument is invalid, or a server has other models only.
        GenerationError: no model is given, and no server answers to report one.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        context_length: int | None = None,
        check_every_s: float = 1.0,
        affinity: Affinity = "prefix",
        margin: int = DEFAULT_MARGIN,
    ) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, not {timeout_s}")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._servers = Servers(urls, self._headers, affinity=affinity, margin=margin)
        self._timeout_s = timeout_s
        self._check_every_s = check_every_s
        self._client: httpx.AsyncClient | None = None
        self._checks: asyncio.Task[None] | None = None
        self._requests: dict[int, _Samples] = {}
        served = self._servers.describe(model, context_length)
        self._model = served.name
        self.root = served.root
        self._context_length = served.context_length

    @property
    def model(self) -> str:
        """The name of the model on the servers."""
        return self._model

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together: the smallest of those given and reported by servers."""
        return self._context_length

    @property
    def vocabulary_size(self) -> None:
        """None, since the protocol does not report it."""
        return None

    @property
    def unsupported(self) -> frozenset[str]:
        """Completion servers do not support a penalty over output tokens only."""
        return frozenset({"output_repetition_penalty"})

    @property
    def is_ready(self) -> bool:
        """Whether any server is alive."""
        return self._servers.any_alive

    async def start(self) -> None:
        """Open the connection pool and start the health checks."""
        self._client = httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(self._timeout_s, connect=CONNECT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEPALIVE_S),
            trust_env=False,
        )
        self._checks = asyncio.create_task(self._servers.check_forever(self._check_every_s))

    async def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> ClosableAsyncIterator[Delta]:
        """See `AsyncEngine.stream`. An answer that exceeds `Decoding.max_tokens` is cut there.

        Raises:
            UnavailableError: no server is alive, or all that were tried (at most two) are overloaded (429, 503).
            TookTooLongError: it sent nothing for `timeout_s`.
            RefusedError: it rejects the request, or a field of the decoding.
            GenerationError: it failed, sent an invalid response, or ended its stream before the answer was finished.
        """
        if self._client is None:
            raise UnavailableError("the upstream has not been started")
        check_supported(decoding, self.unsupported)
        with self._samples(prompt, decoding.n) as samples:
            deltas = self._ask(samples, prompt, decoding, sample, logprobs, whole=whole)
            async with aclosing(deltas):
                async for delta in deltas:
                    yield _without_reused(delta, prompt)

    @contextmanager
    def _samples(self, prompt: Prompt, n: int) -> Iterator[_Samples]:
        """The samples of a prompt's request, which share the prompt object and so are known by it."""
        if n == 1:
            yield _Samples()
            return
        samples = self._requests.setdefault(id(prompt), _Samples())
        samples.n_open += 1
        try:
            yield samples
        finally:
            samples.n_open -= 1
            if not samples.n_open:
                del self._requests[id(prompt)]

    async def _ask(
        self,
        samples: _Samples,
        prompt: Prompt,
        decoding: Decoding,
        sample: int,
        logprobs: int | None,
        *,
        whole: bool,
    ) -> ClosableAsyncIterator[Delta]:
        assert self._client is not None
        stops = merge_stops(prompt.stop, decoding.stop)
        body = self._body(prompt, decoding, stops, sample, logprobs, whole=whole)
        filter_ = StopFilter(stops)
        key = affinity_key(prompt)
        headers = {"X-Session-ID": key} if self._servers.affinity == "prefix" else {}
        overloaded: Server | None = None
        while True:
            server = samples.server = self._servers.choose(key, prefer=samples.server, avoid=overloaded)
            begun = False
            try:
                url = f"{server.url}/completions"
                async with self._client.stream("POST", url, json=body, headers=headers) as response:
                    begun = True
                    if response.status_code != 200:
                        error = await self._status_error(server, response, body)
                        is_last = overloaded is not None or not self._servers.has_other(server)
                        if is_last or not isinstance(error, UnavailableError):
                            raise error
                        overloaded = server
                        continue
                    if whole:
                        deltas = self._whole(response, filter_, decoding.max_tokens)
                    else:
                        deltas = self._streamed(server, response, filter_, decoding.max_tokens)
                    async for delta in deltas:
                        yield delta
                return
            except BadAnswerError as error:
                raise GenerationError(f"{server.name} {error}") from error
            except (httpx.ConnectError, httpx.ConnectTimeout):
                server.alive = False  # it never received the request, so another server can answer
            except httpx.TimeoutException as error:
                raise TookTooLongError(f"{server.name} sent nothing for {self._timeout_s:g} s") from error
            # AttributeError: raised by anyio if the server disappears right after connecting.
            except (httpx.HTTPError, httpx.StreamError, OSError, ValueError, AttributeError) as error:
                what = "interrupted its answer" if begun else "closed the connection"
                raise GenerationError(f"{server.name} {what}: {one_line(error)}") from error
            finally:
                self._servers.release(server)

    async def close(self) -> None:
        """End the health checks and close all connections."""
        if self._checks is not None:
            self._checks.cancel()
            with suppress(asyncio.CancelledError):
                await self._checks
        if self._client is not None:
            await self._client.aclose()

    async def _streamed(
        self, server: Server, response: httpx.Response, filter_: StopFilter, max_tokens: int
    ) -> AsyncIterator[Delta]:
        reason: str | None = None
        counts = UpstreamAnswer()
        n_parts = n_empty = n_characters = 0
        async for event in read_events(response):
            if "error" in event:
                raise GenerationError(f"{server.name} failed: {error_message(event)}")
            part = parse_answer(event)
            reason = part.finish_reason or reason
            counts = counts if part.n_tokens is None else part
            # A part with text has at least one token, so the answer has reached `max_tokens`. If the server continues
            # anyway, leaving here closes the connection.
            n_parts += bool(part.text or part.logprobs)
            n_empty += not (part.text or part.logprobs)
            n_characters += len(part.text)
            if n_parts > max_tokens or n_characters > max_tokens * MAX_TOKEN_CHARACTERS:
                yield Delta(filter_.finish(), n_tokens=max_tokens, finish_reason="length")
                return
            if n_empty > max_tokens + _MOST_EMPTY:
                raise BadAnswerError("sent endless events without text")
            if (text := filter_.push(part.text)) or part.logprobs:
                yield Delta(text, logprobs=part.logprobs)
        if reason is None and not filter_.stopped:
            raise BadAnswerError("ended its stream before the answer was finished")
        yield Delta(
            filter_.finish(),
            n_tokens=counts.n_tokens or 0,
            finish_reason="stop" if filter_.stopped else reason,
            n_cached_tokens=counts.n_cached_tokens,
        )

    async def _whole(self, response: httpx.Response, filter_: StopFilter, max_tokens: int) -> AsyncIterator[Delta]:
        body = await read_answer(response)
        if not body.get("choices"):
            raise BadAnswerError(f"sent no choice: {error_message(body)}")
        answer = cut_answer(parse_answer(body), max_tokens)
        text = filter_.push(answer.text)
        yield Delta(
            text + filter_.finish(),
            n_tokens=answer.n_tokens or 0,
            finish_reason="stop" if filter_.stopped else answer.finish_reason or "stop",
            n_cached_tokens=answer.n_cached_tokens,
            logprobs=answer.logprobs,
        )

    def _body(
        self,
        prompt: Prompt,
        decoding: Decoding,
        stops: Sequence[str],
        sample: int,
        logprobs: int | None,
        *,
        whole: bool,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt.token_ids,
            **decoding_fields(decoding, stops, sample),
            **extension_fields(decoding),
        }
        if prompt.reuse is not None:
            body |= {"kv_transfer_params": prompt.reuse.params(), "cache_salt": prompt.reuse.cache_salt}
        if logprobs is not None:
            body["logprobs"] = logprobs
        if not whole:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body

    async def _status_error(self, server: Server, response: httpx.Response, body: Mapping[str, Any]) -> GenerationError:
        status = response.status_code
        message = await read_error(response)
        if status in _ABOUT_THE_REQUEST:
            # Servers name the unsupported field in different ways.
            named = [name for name in (*EXTENSIONS, "logit_bias") if name in body and name in message]
            return RefusedError(f"{server.name} rejected the request: {message}", named[0] if named else None)
        if status in (429, 503):
            return UnavailableError(f"{server.name} is overloaded (status {status})")
        if status in (408, 504):
            return TookTooLongError(f"{server.name} timed out (status {status})")
        hint = "; check RAGALIGN_UPSTREAM_KEY, the servers' API key" if status in (401, 403) else ""
        return GenerationError(f"{server.name} responded with status {status}: {message}{hint}")
