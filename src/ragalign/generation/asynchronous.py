"""Generation for servers: many answers at once in one event loop, each a stream of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Protocol, runtime_checkable

from ragalign.errors import ConfigError, GenerationError
from ragalign.types import ClosableAsyncIterator, Decoding, Delta, Generator, Prompt


class UnavailableError(GenerationError):
    """Nothing can answer at the moment; a later request may fare better."""


class TookTooLongError(GenerationError):
    """No answer came in time."""


class RefusedError(GenerationError):
    """The engine does not take this request, such as one that is longer than its context.

    Attributes:
        field: the parameter that it cannot honour, such as ``min_p``; None where it is something else.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def check_supported(decoding: Decoding, unsupported: Collection[str]) -> None:
    """Refuse a decoding that sets what an engine cannot honour.

    Raises:
        RefusedError: names the field.
    """
    for name in sorted(unsupported):
        if getattr(decoding, name) != getattr(_NEUTRAL, name):
            raise RefusedError(f"{name}: this engine cannot honour it", name)


_NEUTRAL = Decoding()


@runtime_checkable
class AsyncEngine(Protocol):
    """The asynchronous counterpart of a `Generator`, for services: any number of answers at a time.

    It can also have `vocabulary_size`, below which all token ids are (None where that is not known), and `unsupported`,
    the fields of `Decoding` that it cannot honour: requests that are beyond those are then refused by name.
    """

    @property
    def model(self) -> str:
        """The model's name or folder."""

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and completion share; None where it is not known."""

    @property
    def is_ready(self) -> bool:
        """Whether a request would be answered."""

    async def start(self) -> None:
        """Called once in the event loop, before the first request."""

    def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> ClosableAsyncIterator[Delta]:
        """The `sample`-th answer to a prompt; closing the generator ends the engine's work on it.

        Args:
            prompt: what to continue.
            decoding: how; with a seed, the i-th sample gets seed + i.
            sample: which of `Decoding.n` answers this is.
            logprobs: how many of the most likely tokens to report with each token (0 is the drawn one only);
                None reports nothing.
            whole: the answer in one part, which costs the engine less than many.

        Raises:
            UnavailableError, TookTooLongError, RefusedError: see there.
            GenerationError: the engine failed.
        """

    async def close(self) -> None:
        """Release what the generator holds."""


class ThreadedEngine:
    """An `AsyncEngine` that runs a generator of this process, each answer in a thread of a pool.

    Args:
        generator: any; those that batch (vLLM) share their batches between threads.
        most_at_once: threads.
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
        """Tokens that prompt and completion share; None where it is not known."""
        return self._generator.context_length

    @property
    def vocabulary_size(self) -> int | None:
        """As the generator says, if it does."""
        return getattr(self._generator, "vocabulary_size", None)

    @property
    def unsupported(self) -> frozenset[str]:
        """As the generator says, if it does."""
        return frozenset(getattr(self._generator, "unsupported", ()))

    @property
    def is_ready(self) -> bool:
        """Always: the generator is in this process."""
        return True

    async def start(self) -> None:
        """Nothing to do."""

    async def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> ClosableAsyncIterator[Delta]:
        """See `AsyncEngine.stream`.

        Raises:
            RefusedError: log-probabilities are asked for, which the generators of this process do not give.
            GenerationError: the generator failed.
        """
        if logprobs is not None:
            raise RefusedError("logprobs: this engine gives none", "logprobs")
        check_supported(decoding, self.unsupported)
        seed = None if decoding.seed is None else decoding.seed + sample
        one = replace(decoding, n=1, seed=seed)
        loop = asyncio.get_running_loop()
        deltas: asyncio.Queue[Delta | Exception | None] = asyncio.Queue()
        stopped = threading.Event()

        def put(item: Delta | Exception | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(deltas.put_nowait, item)

        work = self._threads.submit(_pump, self._generator, prompt, one, put, stopped)
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
        """End the threads; the generator itself stays its owner's."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _pump(
    generator: Generator,
    prompt: Prompt,
    decoding: Decoding,
    put: Callable[[Delta | Exception | None], None],
    stopped: threading.Event,
) -> None:
    """Hand over one answer part by part, then None; an error ends it too."""
    try:
        with closing(generator.stream(prompt, decoding)) as parts:
            for part in parts:
                put(part)
                if stopped.is_set():
                    return
        put(None)
    except Exception as error:
        put(error)
