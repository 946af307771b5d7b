"""What runs in Ray's actors: an engine, or an encoder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ragalign.types import Completion, Decoding, Output, Prompt


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """A worker's engine, as the driver needs to know it."""

    context_length: int | None
    vocabulary_size: int | None
    unsupported: frozenset[str]
    together: bool
    pid: int


@dataclass(frozen=True, slots=True)
class WorkerCompletion:
    """A completion without its prompt, which the driver has."""

    outputs: tuple[Output, ...]
    n_cached_tokens: int | None
    latency_s: float
    first_token_s: float | None
    n_reused_tokens: int

    def completion(self, prompt: Prompt) -> Completion:
        """The completion of `prompt`."""
        return Completion(
            prompt, self.outputs, self.n_cached_tokens, self.latency_s, self.first_token_s, self.n_reused_tokens
        )


class EngineWorker:
    """An engine in an actor. It runs in the actor's own process, and so dies with it."""

    def __init__(self, backend: str, model: str, context_length: int | None, options: Mapping[str, Any]) -> None:
        self._arguments = (backend, model, context_length, dict(options))
        self._generator: Any = None

    def start(self) -> EngineInfo:
        """Start the engine.

        Raises:
            RagalignError: as `ragalign.generation.make_generator`.
        """
        from ragalign.generation import make_generator

        backend, model, context_length, options = self._arguments
        self._generator = made = make_generator(backend, model=model, context_length=context_length, **options)
        return EngineInfo(
            made.context_length,
            made.vocabulary_size,
            made.unsupported,
            # Whether calls from several threads share the engine's batches.
            together=type(made).__name__ == "VllmGenerator",
            pid=os.getpid(),
        )

    def answer(self, prompts: Sequence[Prompt], decoding: Decoding) -> Iterator[tuple[int, WorkerCompletion]]:
        """Answer prompts, yielding (position, answer) as each finishes.

        Raises:
            GenerationError: the engine failed.
        """
        for position, found in self._generator.iter_generate(list(prompts), decoding):
            yield (
                position,
                WorkerCompletion(
                    found.outputs, found.n_cached_tokens, found.latency_s, found.first_token_s, found.n_reused_tokens
                ),
            )

    def distributions(self, items: Sequence[tuple[Any, int]], top_k: int | None) -> Iterator[tuple[int, Any]]:
        """As the generator's, for (token ids, start)."""
        yield from self._generator.distributions(*_sequences(items), top_k=top_k)

    def token_logprobs(self, items: Sequence[tuple[Any, int]]) -> Iterator[tuple[int, Any]]:
        """As the generator's, for (token ids, start)."""
        yield from self._generator.token_logprobs(*_sequences(items))

    def reset_prefix_cache(self) -> bool:
        """Empty the engine's prefix cache."""
        return bool(self._generator.reset_prefix_cache())


def _sequences(items: Sequence[tuple[Any, int]]) -> tuple[list[list[int]], list[int]]:
    return [ids.tolist() for ids, _ in items], [start for _, start in items]


class EncoderWorker:
    """An encoder in an actor of Ray Data; vectors are cached on the driver only."""

    def __init__(self, options: Mapping[str, Any], kind: str) -> None:
        from ragalign.encoders import Encoder

        self._encoder = Encoder.load(**options, cache=None)
        self._kind: Any = kind

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the vectors ``[n, d]`` of a batch of texts."""
        vectors = self._encoder.encode([str(text) for text in batch["text"]], kind=self._kind)
        return {"row": batch["row"], "vector": vectors}
