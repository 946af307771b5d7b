"""The protocol of generators."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from ragalign.types import Completion, Decoding, Delta, Prompt

T_co = TypeVar("T_co", covariant=True)


class ClosableIterator(Protocol[T_co]):
    """An iterator whose work ends when it is closed, such as a generator object."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """End the work; can be called more than once."""


class ClosableAsyncIterator(Protocol[T_co]):
    """An asynchronous iterator whose work ends when it is closed."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def __anext__(self) -> Awaitable[T_co]: ...

    def aclose(self) -> Awaitable[None]:
        """End the work; can be called more than once."""


class Generator(Protocol):
    """Turns prompts into completions.

    The aligner and the bench need only this; likelihoods also need `SupportsDistributions`.
    """

    @property
    def model(self) -> str:
        """The model's name or folder."""

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together; None if unknown."""

    @property
    def shares_cpu(self) -> bool:
        """Whether the engine runs on this machine's CPU, so that concurrent work slows it down."""

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        """Answer all prompts, in input order.

        Raises:
            GenerationError: the engine or the endpoint failed.
        """

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        """Answer all prompts, yielding (position in `prompts`, completion) as each finishes.

        If `prompts` is an iterator, later prompts are made while earlier ones are answered.
        """

    def stream(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Answer one prompt, yielding its parts as they are generated, without stop strings.

        The last part has a `finish_reason`. Closing the iterator cancels the request. A service calls this from several
        threads.
        """

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache; returns False if there is none that can be emptied."""

    def close(self) -> None:
        """Release the generator's resources."""
