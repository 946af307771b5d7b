"""Generation with endpoints that implement the OpenAI completions protocol."""

from __future__ import annotations

import asyncio
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from ragalign._optional import require
from ragalign._urls import SERVER_URL, is_server_url
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation._completions import decoding_fields, extension_fields
from ragalign.generation._upstream_answers import token_count
from ragalign.generation.ahead import Ahead
from ragalign.generation.base import BaseGenerator, SampledOutput, as_requests, one_line
from ragalign.generator import ClosableIterator
from ragalign.stopping import StopFilter, cut_at_stop, merge_stops
from ragalign.types import Decoding, Delta, Output, Prompt

# Statuses that concern one request, not the endpoint: other requests can still succeed.
_ABOUT_ONE_REQUEST = frozenset({400, 413, 422})
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.5, 8.0


class OpenAIGenerator(BaseGenerator):
    """An OpenAI-compatible ``/v1/completions`` endpoint: vLLM's server, SGLang, llama.cpp and others.

    Rate limits (429), server errors (5xx), timeouts, dropped connections and unreadable answers are retried with
    exponential backoff and jitter, respecting Retry-After. When a request fails permanently, requests in flight are
    finished and yielded before the error is raised; further ones are sent only if the failure concerns that request
    (status 400, 413, 422).

    `Completion.n_cached_tokens` is the number that the server reports; vLLM reports it with
    ``--enable-prompt-tokens-details``. `Output.n_tokens` is 0 if a server does not report usage.

    Args:
        model: the name of the model on the endpoint.
        base_url: such as "http://localhost:8000/v1".
        api_key: the API key; OPENAI_API_KEY by default, or none if that is not set.
        concurrency: maximum number of concurrent requests.
        timeout_s: seconds without an answer after which a request is retried.
        max_retries: maximum number of retries per request.
        context_length: maximum tokens of prompt and completion together, to check prompts before sending; None skips
            the check.
        send: "token_ids" sends the exact tokens of the prompt, which vLLM and SGLang support; "text" sends the text,
            for other servers, which add BOS themselves.

    Raises:
        ConfigError: an argument is out of range.
        MissingDependencyError: the `openai` package is not installed.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        api_key: str | None = None,
        concurrency: int = 32,
        timeout_s: float = 600.0,
        max_retries: int = 5,
        context_length: int | None = None,
        send: Literal["token_ids", "text"] = "token_ids",
    ) -> None:
        if not is_server_url(base_url):
            raise ConfigError(f"base_url must be {SERVER_URL}, not {base_url!r}")
        if concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, not {concurrency}")
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, not {timeout_s}")
        if max_retries < 0:
            raise ConfigError(f"max_retries must be at least 0, not {max_retries}")
        if send not in ("token_ids", "text"):
            raise ConfigError(f'send must be "token_ids" or "text", not {send!r}')
        self._openai: Any = require("openai", "an OpenAI-compatible endpoint")
        self._model = model
        self._base_url = base_url
        self._endpoint = _without_credentials(base_url)
        # Servers without authentication still get a header, since the client requires one.
        self._api_key = api_key or os.environ.get("OPENAI_API_KEY") or "none"
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._context_length = context_length
        self._send = send

    @property
    def model(self) -> str:
        """The name of the model on the endpoint."""
        return self._model

    @property
    def context_length(self) -> int | None:
        """As given, since the protocol does not report it."""
        return self._context_length

    @property
    def unsupported(self) -> frozenset[str]:
        """Endpoints do not support a penalty over output tokens only."""
        return frozenset({"output_repetition_penalty"})

    def close(self) -> None:
        """Do nothing: connections are closed after each call."""

    def _check(self, prompts: Sequence[Prompt], decoding: Decoding) -> None:
        super()._check(prompts, decoding)
        if decoding.output_repetition_penalty != 1:
            raise ConfigError(
                "output_repetition_penalty: not supported by endpoints; use presence_penalty or frequency_penalty, "
                "or run the model here with vLLM or transformers"
            )

    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        """Run the requests in an event loop in a separate thread, so that the caller can be in a loop itself."""
        results: queue.SimpleQueue[SampledOutput | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        coming = Ahead(as_requests(prompts, decoding.n))
        task = loop.create_task(self._work(coming, decoding, results.put))

        def work() -> None:
            try:
                loop.run_until_complete(task)
                results.put(None)
            except BaseException as error:
                results.put(error)
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        worker = threading.Thread(target=work, name="ragalign-openai", daemon=True)
        worker.start()
        finished = False
        try:
            while (result := results.get()) is not None:
                if isinstance(result, BaseException):
                    finished = True
                    raise result
                yield result
            finished = True
        finally:
            if not finished:
                with suppress(RuntimeError):  # the loop can have ended meanwhile
                    loop.call_soon_threadsafe(task.cancel)
            coming.close()
            worker.join()

    async def _work(
        self, coming: Ahead[tuple[int, int, Prompt]], decoding: Decoding, put: Callable[[SampledOutput], None]
    ) -> None:
        # Workers take requests one after another, so requests start in the given order.
        turn = asyncio.Lock()
        failures: list[_RequestError] = []
        n_sent = 0
        broken: Exception | None = None

        async def worker(client: Any) -> None:
            nonlocal n_sent, broken
            while broken is None and all(failure.is_about_request for failure in failures):
                async with turn:
                    try:
                        taken = coming.take(1, wait=False) or await asyncio.to_thread(coming.take, 1, wait=True)
                    except Exception as error:  # from making prompts; requests in flight are finished first
                        broken = error
                        return
                if not taken:
                    return
                [(index, sample, prompt)] = taken
                n_sent += 1
                started = time.perf_counter()
                try:
                    output, n_cached = await self._ask(client, prompt, decoding, sample)
                except _RequestError as failure:
                    failures.append(failure)
                else:
                    put(SampledOutput(index, sample, prompt, output, n_cached, time.perf_counter() - started))

        async with self._openai.AsyncOpenAI(**self._client_options()) as client:
            await asyncio.gather(*(worker(client) for _ in range(self._concurrency)))
        if broken is not None:
            raise broken
        if failures:
            message = str(failures[0])
            if n_sent > 1:
                message = f"{len(failures)} of the {n_sent} requests sent failed: {message}"
            raise GenerationError(message) from failures[0].__cause__

    async def _ask(self, client: Any, prompt: Prompt, decoding: Decoding, sample: int) -> tuple[Output, int | None]:
        """Send one request; the client retries after connection errors and error statuses."""
        stops = merge_stops(prompt.stop, decoding.stop)
        parameters = self._parameters(prompt, decoding, stops, sample)
        attempt = 0
        while True:
            try:
                return _parse(await client.completions.create(**parameters), stops)
            except self._openai.OpenAIError as error:
                raise self._request_error(error) from error
            except (ValueError, RecursionError) as error:  # not JSON, or JSON that is not a completion
                if attempt == self._max_retries:
                    raise self._request_error(error) from error
            await asyncio.sleep(min(_FIRST_DELAY_S * 2**attempt, _LONGEST_DELAY_S) * random.uniform(0.75, 1.0))
            attempt += 1

    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        stops = merge_stops(prompt.stop, decoding.stop)
        # Servers differ in what they let through in streams, so filter stop strings here.
        pieces = StopFilter(stops)
        reason: str | None = None
        usage: Any = None
        parameters = self._parameters(prompt, decoding, stops, 0) | {"stream_options": {"include_usage": True}}
        try:
            with (
                self._openai.OpenAI(**self._client_options()) as client,
                client.completions.create(**parameters, stream=True) as chunks,
            ):
                for chunk in chunks:
                    usage = getattr(chunk, "usage", None) or usage
                    for choice in chunk.choices or ():
                        reason = reason or choice.finish_reason
                        if text := pieces.push(choice.text or ""):
                            yield Delta(text)
                    if pieces.stopped:
                        break
        except GeneratorExit:
            raise
        except Exception as error:  # errors of the HTTP library occur while a stream is read
            raise GenerationError(str(self._request_error(error))) from error
        if reason is None and not pieces.stopped:
            raise GenerationError(f"{self._endpoint} ended its stream before the answer was finished")
        try:
            n_tokens, n_cached = _counts(usage)
        except ValueError as error:
            raise GenerationError(f"{self._endpoint} {error}") from error
        yield Delta(
            pieces.finish(),
            n_tokens=n_tokens,
            finish_reason="stop" if pieces.stopped else reason,
            n_cached_tokens=n_cached,
        )

    def _client_options(self) -> dict[str, Any]:
        return {
            "base_url": self._base_url,
            "api_key": self._api_key,
            "timeout": self._timeout_s,
            "max_retries": self._max_retries,
        }

    def _parameters(self, prompt: Prompt, decoding: Decoding, stops: Sequence[str], sample: int) -> dict[str, Any]:
        parameters: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt.token_ids if self._send == "token_ids" else prompt.text,
            **decoding_fields(decoding, stops, sample),
        }
        if extensions := extension_fields(decoding):
            parameters["extra_body"] = extensions
        return parameters

    def _request_error(self, error: Exception) -> _RequestError:
        openai = self._openai
        about_request = False
        if isinstance(error, openai.APITimeoutError):
            reason = f"timed out {self._max_retries + 1} times after {self._timeout_s:g} s"
        elif isinstance(error, openai.APIConnectionError):
            reason = f"cannot be reached: {one_line(error.__cause__ or error)}"
        elif isinstance(error, openai.APIStatusError):
            about_request = error.status_code in _ABOUT_ONE_REQUEST
            reason = f"responded with status {error.status_code}: {_server_message(error)}"
            if error.status_code in (401, 403):
                reason += "; check OPENAI_API_KEY"
            elif about_request and self._send == "token_ids" and _is_about_form(reason):
                reason += '; if the server does not accept token ids, use send="text"'
        elif isinstance(error, ValueError | RecursionError):
            reason = f"sent an invalid completion: {one_line(error)}"
        else:
            reason = f"failed: {one_line(error)}"
        message = f"{self._endpoint} {reason}"
        if self._api_key != "none":  # a server can repeat the key
            message = message.replace(self._api_key, "***")
        return _RequestError(message, about_request)


class _RequestError(Exception):
    """A request that failed permanently, and whether the failure concerns only this request."""

    def __init__(self, message: str, is_about_request: bool) -> None:
        super().__init__(message)
        self.is_about_request = is_about_request


def _parse(answer: Any, stops: Sequence[str]) -> tuple[Output, int | None]:
    """Parse the single choice of a completion, and the number of cached prompt tokens.

    Raises:
        ValueError: `answer` is not a completion with one choice.
    """
    choices = getattr(answer, "choices", None)
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0].text, str):
        raise ValueError(f"expected a completion with one choice, got {one_line(ValueError(str(answer)), 80)}")
    n_tokens, n_cached = _counts(getattr(answer, "usage", None))
    output = Output(
        text=cut_at_stop(choices[0].text, stops), finish_reason=choices[0].finish_reason or "stop", n_tokens=n_tokens
    )
    return output, n_cached


def _counts(usage: Any) -> tuple[int, int | None]:
    """Tokens of the answer (0 if not reported), and cached tokens of the prompt.

    Raises:
        ValueError: they are not counts.
    """
    details = getattr(usage, "prompt_tokens_details", None)
    n_tokens = token_count(getattr(usage, "completion_tokens", None), "usage.completion_tokens")
    n_cached = token_count(getattr(details, "cached_tokens", None), "usage.prompt_tokens_details.cached_tokens")
    return n_tokens or 0, n_cached


def _server_message(error: Any) -> str:
    """The server's error message if it follows the protocol, or else the start of its response."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    return one_line(ValueError(str(body))) if body else error.response.reason_phrase


def _is_about_form(message: str) -> bool:
    """Whether an error seems to be about the type of the prompt, from servers that expect a string."""
    return any(word in message.lower() for word in ("string", "type", "variant"))


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
