"""Asynchronous generation for servers: many concurrent answers in one event loop, each a stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Protocol, runtime_checkable

from ragalign.errors import ConfigError, GenerationError
from ragalign.generator import ClosableAsyncIterator, Generator
from ragalign.types import Decoding, Delta, Prompt


class UnavailableError(GenerationError):
    """No engine can answer at the moment; a later request can succeed."""


class TookTooLongError(GenerationError):
    """The answer timed out."""


class RefusedError(GenerationError):
    """The engine rejects the request, for example because it exceeds the context.

    Attributes:
        field: the unsupported parameter, such as ``min_p``; None for other reasons.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def check_supported(decoding: Decoding, unsupported: Collection[str]) -> None:
    """Reject decoding parameters that an engine does not support.

    Raises:
        RefusedError: a field is set that the engine does not support; the message names it.
    """
    for name in sorted(unsupported):
        if getattr(decoding, name) != getattr(_NEUTRAL, name):
            raise RefusedError(f"{name}: not supported by this engine", name)


_NEUTRAL = Decoding()


@runtime_checkable
class AsyncEngine(Protocol):
    """The asynchronous counterpart of a `Generator`, for services with any number of concurrent answers.

    It can also have `vocabulary_size` (None if unknown) and `unsupported`, the fields of `Decoding` that it does not
    support: requests with other token ids or with these fields are then rejected with the name of the field.
    """

    @property
    def model(self) -> str:
        """The model's name or folder."""

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together; None if unknown."""

    @property
    def is_ready(self) -> bool:
        """Whether the engine can answer requests."""

    async def start(self) -> None:
        """Start the engine; called once in the event loop, before the first request."""

    def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> ClosableAsyncIterator[Delta]:
        """Stream the `sample`-th answer to a prompt; closing the iterator cancels the request.

        Args:
            prompt: the prompt to continue.
            decoding: decoding parameters; with a seed, the i-th sample gets seed + i.
            sample: index of this answer among `Decoding.n`.
            logprobs: number of most likely tokens to report with each token (0 reports only the sampled token); None
                reports nothing.
            whole: return the answer in one part, which costs the engine less.

        Raises:
            UnavailableError, TookTooLongError, RefusedError: see these classes.
            GenerationError: the engine failed.
        """

    async def close(self) -> None:
        """Release the engine's resources."""


class ThreadedEngine:
    """An `AsyncEngine` that runs a generator in this process, with each answer in a thread of a pool.

    Args:
        generator: any generator; vLLM's batches the requests of all threads.
        most_at_once: number of threads.
    """

    def __init__(self, generator: Generator, *, most_at_once: int = 64) -> None:
        self._generator = generator
        self._threads = ThreadPoolExecutor(most_at_once, thread_name_prefix="ragalign-engine")

    @property
    def model(self) -> str:
        """The model's name or folder."""
        return self._generator.model

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together; None if unknown."""
        return self._generator.context_length

    @property
    def vocabulary_size(self) -> int | None:
        """From the generator, if it has this attribute."""
        return getattr(self._generator, "vocabulary_size", None)

    @property
    def unsupported(self) -> frozenset[str]:
        """From the generator, if it has this attribute."""
        return frozenset(getattr(self._generator, "unsupported", ()))

    @property
    def is_ready(self) -> bool:
        """Always True: the generator is in this process."""
        return True

    async def start(self) -> None:
        """Nothing to do."""

    async def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> ClosableAsyncIterator[Delta]:
        """See `AsyncEngine.stream`.

        Raises:
            RefusedError: log-probabilities are requested, which generators do not support.
            GenerationError: the generator failed.
        """
        if logprobs is not None:
            raise RefusedError("logprobs: not supported by this engine", "logprobs")
        check_supported(decoding, self.unsupported)
        seed = None if decoding.seed is None else decoding.seed + sample
        single = replace(decoding, n=1, seed=seed)
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        stopped = threading.Event()

        def put(item: Delta | Exception | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(deltas.put_nowait, item)

        work = self._threads.submit(_pump, self._generator, prompt, single, put, stopped)
        try:
            while (item := await deltas.get()) is not None:
                if isinstance(item, ConfigError):
                    raise RefusedError(str(item)) from item
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stopped.set()
            work.cancel()

    async def close(self) -> None:
        """Stop the threads; the generator is not closed."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _pump(
    generator: Generator,
    prompt: Prompt,
    decoding: Decoding,
    put: Callable[[Delta | Exception | None], None],
    stopped: threading.Event,
) -> None:
    """Pass on the parts of an answer, followed by None, or by an error."""
    try:
        with closing(generator.stream(prompt, decoding)) as parts:
            for part in parts:
                put(part)
                if stopped.is_set():
                    return
        put(None)
    except Exception as error:
        put(error)
