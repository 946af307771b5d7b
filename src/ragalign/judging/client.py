"""Asks one judge: an asynchronous client of the OpenAI chat-completions protocol that retries by its own rules."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ragalign.judging.base import JudgeReply, JudgeUsage
from ragalign.judging.budget import Ledger
from ragalign.judging.dialect import Dialect, TokenLimit
from ragalign.judging.judges import Judge
from ragalign.judging.limits import TokenWindow
from ragalign.judging.pricing import Quote
from ragalign.judging.retries import FinalError, RetryableError, RetryPolicy, failure
from ragalign.text import valid_values

if TYPE_CHECKING:
    import httpx

# Until an endpoint has said anything at all, a refused connection more likely means a wrong address than a bad moment.
_ATTEMPTS_TO_CONNECT = 5
# A shorter key (such as "EMPTY" for a local server) is no secret, and may be an ordinary word in a reply.
_SHORTEST_SECRET = 8


class _LearntError(Exception):
    """The server refused a parameter, and the next request will do without."""


class ChatClient:
    """One judge's connections; close it with `aclose`.

    Args:
        judge: whom to ask. Its key is read from the environment now, and only ever put into the request header.
        ledger: books each request before it is sent.
        concurrency: most requests in flight.
        timeout_s: most seconds from sending a request to the end of its reply.
        retry: what to do after failures.
        window: the limit on tokens per minute.
        token_limit: the name of the limit on new tokens in requests.

    Raises:
        ConfigError: the key is missing or unusable.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        ledger: Ledger,
        concurrency: int,
        timeout_s: float,
        retry: RetryPolicy,
        window: TokenWindow,
        token_limit: TokenLimit = "auto",
    ) -> None:
        import httpx

        self.judge = judge
        self.n_requests = 0
        self.dialect = Dialect(token_limit)
        self._has_responded = False
        self._key = judge.key()
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._retry = retry
        self._window = window
        # Only spreads retries over time; results do not depend on it.
        self._random = random.Random()
        # One client, hence one connection, per request in flight: the work of a shared pool grows with the square
        # of its connections (at 64 it took most of the time). Last in, first out, so that few stay open.
        verify = httpx.create_ssl_context()
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else None
        self._clients = [httpx.AsyncClient(headers=headers, verify=verify, timeout=None) for _ in range(concurrency)]
        self._idle: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        for client in self._clients:
            self._idle.put_nowait(client)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the server took other parameters than the protocol's."""
        return self.dialect.notes

    async def aclose(self) -> None:
        """Close all connections."""
        for client in self._clients:
            await client.aclose()

    async def ask(self, body: Mapping[str, Any], *, n_tokens: int, quote: Quote) -> JudgeReply:
        """Send a question until it is answered.

        Args:
            body: the request without the model.
            n_tokens: what the request may use, for the limit on tokens per minute.
            quote: what it may cost, for the budget.

        Raises:
            BudgetSpentError: the budget is spent.
            RequestError: it was not answered, and asking again does not help or has been tried often enough.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(body, n_tokens, quote)
            except _LearntError:
                attempt -= 1  # nothing failed: the same question is asked with other parameters
                continue
            except RetryableError as error:
                wait_s = self._retry.wait_s(attempt, error.retry_after_s, self._random)
                if wait_s is None or (not self._has_responded and attempt >= _ATTEMPTS_TO_CONNECT):
                    raise RetryableError(f"{error.reason} (given up after {_times(attempt)})") from None
            # The connection is free meanwhile: whoever waits is not in flight.
            await self._ledger.sleep(wait_s)

    async def _attempt(self, body: Mapping[str, Any], n_tokens: int, quote: Quote) -> JudgeReply:
        client = await self._idle.get()
        try:
            grant = await self._window.acquire(n_tokens)
            await self._ledger.reserve(quote.at_most)
            spent = 0.0
            try:
                self.n_requests += 1
                # Only now, so that whoever waited for a connection has what others learnt meanwhile.
                sent = self.dialect.translate({"model": self.judge.model, **body})
                reply = await self._send(client, json.dumps(sent).encode())
                spent = quote.of(reply.usage)
            except FinalError as error:
                if self.dialect.learn(sent, error.error):
                    raise _LearntError from None
                raise
            finally:
                self._ledger.settle(quote.at_most, spent)
        finally:
            self._idle.put_nowait(client)
        if reply.usage is not None:
            self._window.correct(grant, reply.usage.n_prompt_tokens + reply.usage.n_output_tokens)
        return reply

    async def _send(self, client: httpx.AsyncClient, content: bytes) -> JudgeReply:
        """One request and its reply.

        Errors are raised outside of `except`, so that no chain leads from them to the request and its key.
        """
        import httpx

        started = time.perf_counter()
        problem = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await client.post(
                    self.judge.url, content=content, headers={"Content-Type": "application/json"}
                )
        except TimeoutError:
            self._has_responded = True  # something did accept the connection, or swallowed it for long enough
            problem = f"no reply within {self._timeout_s:g} s"
        except httpx.TransportError as error:
            problem = f"the connection failed ({type(error).__name__})"
        if problem:
            raise RetryableError(problem)
        self._has_responded = True
        latency_s = time.perf_counter() - started
        body = self._parsed(response)
        if not response.is_success:
            raise failure(response.status_code, body, response.headers)
        if not isinstance(body, dict):
            raise RetryableError("the reply is no complete JSON object")
        choices, reported = body.get("choices"), body.get("error")
        if reported and not choices:
            # Gateways pass on a provider's failure inside a success; without a status of its own it may pass.
            code = reported.get("code") if isinstance(reported, dict) else None
            raise failure(code if isinstance(code, int) else 502, body, response.headers)
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise RetryableError("the reply holds no message")
        return JudgeReply(
            judge=self.judge.name, choice=choice, usage=_usage(body), latency_s=latency_s, created=time.time()
        )

    def _parsed(self, response: httpx.Response) -> Any:
        """The body's JSON without the key, should the endpoint have quoted it; None if it is no JSON."""
        text = response.text
        if self._key is not None and len(self._key) >= _SHORTEST_SECRET:
            text = text.replace(self._key, "[API key]")
        try:
            # NaN and infinities, which some servers send as log-probabilities, are not JSON: no file could hold them.
            return valid_values(json.loads(text, parse_constant=lambda _: None))
        except (ValueError, RecursionError):
            return None


def _usage(body: Mapping[str, Any]) -> JudgeUsage | None:
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (isinstance(prompt, int) and isinstance(output, int) and prompt >= 0 and output >= 0):
        return None
    return JudgeUsage(prompt, output)


def _times(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"
