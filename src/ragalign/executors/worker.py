"""The classes of Ray's actors: an engine, or an encoder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder, TextKind
from ragalign.errors import ConfigError
from ragalign.executors.settings import receive_secrets
from ragalign.types import Completion, Decoding, Output, Prompt


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker that has started.

    Attributes:
        pid: its process id, on its node.
        n_runs: runs to give it at a time, so that it never waits for the driver.
    """

    pid: int
    n_runs: int


@dataclass(frozen=True, slots=True)
class EngineInfo(WorkerInfo):
    """A worker's engine, as the driver needs to know it."""

    context_length: int | None
    vocabulary_size: int | None
    unsupported: frozenset[str]


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
    """An engine in an actor. It runs in the actor's own process, and so dies with it.

    Its methods yield (positions, results): which items are done, and what came out.
    """

    def __init__(self, backend: str, model: str, context_length: int | None, options: Mapping[str, Any]) -> None:
        self._arguments = (backend, model, context_length, dict(options))
        self._generator: Any = None

    def start(self, secrets: Mapping[str, str]) -> EngineInfo:
        """Start the engine.

        Raises:
            RagalignError: as `ragalign.generation.make_generator`.
        """
        receive_secrets(secrets)
        from ragalign.generation import make_generator

        backend, model, context_length, options = self._arguments
        self._generator = made = make_generator(backend, model=model, context_length=context_length, **options)
        # Only there do calls from several threads share the engine's batches.
        n_runs = 2 if type(made).__name__ == "VllmGenerator" else 1
        return EngineInfo(os.getpid(), n_runs, made.context_length, made.vocabulary_size, made.unsupported)

    def answer(
        self, prompts: Sequence[Prompt], decoding: Decoding
    ) -> Iterator[tuple[list[int], list[WorkerCompletion]]]:
        """Answer prompts, yielding each answer as it finishes.

        Raises:
            GenerationError: the engine failed.
        """
        for position, found in self._generator.iter_generate(list(prompts), decoding):
            answer = WorkerCompletion(
                found.outputs, found.n_cached_tokens, found.latency_s, found.first_token_s, found.n_reused_tokens
            )
            yield [position], [answer]

    def distributions(self, items: Sequence[tuple[Any, int]], top_k: int | None) -> Iterator[tuple[list[int], Any]]:
        """As the generator's, for (token ids, start)."""
        for position, found in self._generator.distributions(*_sequences(items), top_k=top_k):
            yield [position], [found]

    def token_logprobs(self, items: Sequence[tuple[Any, int]]) -> Iterator[tuple[list[int], Any]]:
        """As the generator's, for (token ids, start)."""
        for position, found in self._generator.token_logprobs(*_sequences(items)):
            yield [position], [found]

    def reset_prefix_cache(self) -> bool:
        """Empty the engine's prefix cache."""
        return bool(self._generator.reset_prefix_cache())


def _sequences(items: Sequence[tuple[Any, int]]) -> tuple[list[list[int]], list[int]]:
    return [ids.tolist() for ids, _ in items], [start for _, start in items]


class EncoderWorker:
    """An encoder in an actor; vectors are cached on the driver only.

    Args:
        options: of `Encoder.load`.
        fingerprint: of the driver's encoder.
    """

    def __init__(self, options: Mapping[str, Any], fingerprint: str) -> None:
        self._options, self._fingerprint = options, fingerprint
        self._encoder: Any = None

    def start(self, secrets: Mapping[str, str]) -> WorkerInfo:
        """Load the encoder.

        Raises:
            ConfigError: it cannot be loaded, or makes other vectors than the driver's.
        """
        receive_secrets(secrets)
        self._encoder = Encoder.load(**self._options, cache=None)
        if self._encoder.fingerprint != self._fingerprint:
            raise ConfigError(
                f"the encoder {self._encoder.id!r} on the node {platform.node()} differs from the one here: compare "
                "its files and the version of sentence-transformers, or name a folder that all nodes share"
            )
        return WorkerInfo(os.getpid(), n_runs=2)

    def encode(self, texts: Sequence[str], kind: TextKind) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """The vectors ``[n, d]`` of texts.

        Raises:
            DataError: a text cannot be tokenized, such as one with a lone surrogate.
        """
        yield list(range(len(texts))), self._encoder.encode(list(texts), kind=kind)
