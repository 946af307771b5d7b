"""An asynchronous client of one judge's chat-completions endpoint, with its own retries."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ragalign.judging.budget import Ledger
from ragalign.judging.dialect import Dialect, TokenLimit
from ragalign.judging.judges import Judge
from ragalign.judging.limits import TokenWindow
from ragalign.judging.pricing import Quote
from ragalign.judging.requests import JudgeReply, JudgeUsage
from ragalign.judging.retries import FinalError, RetryableError, RetryPolicy, failure
from ragalign.text import valid_values

if TYPE_CHECKING:
    import httpx

# Until an endpoint has responded once, a refused connection more likely means a wrong address than an outage.
_ATTEMPTS_TO_CONNECT = 5
# A shorter key (such as "EMPTY" for a local server) is not a secret, and can be an ordinary word in a reply.
_SHORTEST_SECRET = 8


class _LearntError(Exception):
    """The server rejected a parameter; the next request is sent without it."""


class ChatClient:
    """A client of one judge; close it with `aclose`.

    Args:
        judge: the judge to ask. Its key is read from the environment now, and used in the request header only.
        ledger: books each request before it is sent.
        concurrency: maximum requests in flight.
        timeout_s: maximum seconds from sending a request to the end of its reply.
        retry: when to retry failed requests.
        window: the limit on tokens per minute.
        token_limit: the name of the token limit in requests.

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
        # For the jitter of retries; results do not depend on it.
        self._random = random.Random()
        # One client, and so one connection, per request in flight: the work of a shared pool grows with the square
        # of its connections (at 64 it took most of the time). Last in, first out keeps few connections open.
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
        """Send a question, with retries, until it is answered.

        Args:
            body: the request without the model.
            n_tokens: maximum tokens of the request, for the limit on tokens per minute.
            quote: maximum cost of the request, for the budget.

        Raises:
            BudgetSpentError: the budget is spent.
            RequestError: it was not answered, and a retry is pointless or the retries are used up.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(body, n_tokens, quote)
            except _LearntError:
                attempt -= 1  # not a failure: the same question is sent with other parameters
                continue
            except RetryableError as error:
                wait_s = self._retry.wait_s(attempt, error.retry_after_s, self._random)
                if wait_s is None or (not self._has_responded and attempt >= _ATTEMPTS_TO_CONNECT):
                    raise RetryableError(f"{error.reason} (given up after {_times(attempt)})") from None
            # The connection is free in the meantime: a waiting question is not in flight.
            await self._ledger.sleep(wait_s)

    async def _attempt(self, body: Mapping[str, Any], n_tokens: int, quote: Quote) -> JudgeReply:
        client = await self._idle.get()
        try:
            grant = await self._window.acquire(n_tokens)
            await self._ledger.reserve(quote.at_most)
            spent = 0.0
            try:
                self.n_requests += 1
                # Translate only now, to use what other requests have learnt in the meantime.
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
        """Send one request and return its reply.

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
            self._has_responded = True  # the endpoint accepted the connection, or at least did not refuse it
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
            raise RetryableError("the reply is not a complete JSON object")
        choices, reported = body.get("choices"), body.get("error")
        if reported and not choices:
            # Gateways report a provider's failure with status 200; without an error code, treat it as temporary.
            code = reported.get("code") if isinstance(reported, dict) else None
            raise failure(code if isinstance(code, int) else 502, body, response.headers)
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise RetryableError("the reply has no message")
        return JudgeReply(
            judge=self.judge.name, choice=choice, usage=_usage(body), latency_s=latency_s, created=time.time()
        )

    def _parsed(self, response: httpx.Response) -> Any:
        """The body's JSON, with the API key masked; None if it is not JSON."""
        text = response.text
        if self._key is not None and len(self._key) >= _SHORTEST_SECRET:
            text = text.replace(self._key, "[API key]")
        try:
            # Some servers send NaN and infinities as log probabilities, which JSON files cannot hold.
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
