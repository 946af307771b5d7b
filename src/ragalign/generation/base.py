"""The base class of generators: checks arguments, keeps the input order, and gathers samples into completions."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ragalign._progress import progress
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation.distributions import MIN_TOP_K, Distributions
from ragalign.generation.presets import validate
from ragalign.generator import ClosableIterator
from ragalign.stopping import merge_stops
from ragalign.types import Completion, Decoding, Delta, Output, Prompt

# URIAL chose its repetition penalty for prompts of one to two thousand tokens.
LONG_PROMPT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class SampledOutput:
    """A finished answer: the `sample`-th to the prompt at `index`."""

    index: int
    sample: int
    prompt: Prompt
    output: Output
    n_cached_tokens: int | None
    latency_s: float
    first_token_s: float | None = None
    n_reused_tokens: int = 0


class BaseGenerator(ABC):
    """A base class for generators whose engine yields samples in any order: checks, gathers and orders them.

    ragalign only requires the protocol `ragalign.Generator`; your own generators need not derive from this class.

    `Decoding.n` answers are `n` separate requests; with a seed, the i-th one (from 0) gets seed + i, so that an answer
    depends neither on the batch nor on `n`. `Completion.n_cached_tokens` and `first_token_s` are those of the first
    sample, since the others find the whole prompt in the cache.
    """

    _warned = False

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name or folder."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together; None if unknown."""

    @property
    def vocabulary_size(self) -> int | None:
        """The size of the model's vocabulary, above all token ids; None if unknown."""
        return None

    @property
    def unsupported(self) -> frozenset[str]:
        """The fields of `Decoding` that this generator does not support."""
        return frozenset()

    @property
    def shares_cpu(self) -> bool:
        """Whether the engine runs on this machine's CPU, so that concurrent work slows it down."""
        return False

    @abstractmethod
    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        """Answer every prompt `decoding.n` times, yielding samples as they finish, in any order.

        Making the prompts of an iterator takes time, so read it in a thread (see `Ahead`).
        """

    @abstractmethod
    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Answer one prompt once, yielding its parts as they are generated; the last one has the finish reason."""

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        """Answer all prompts; returns completions in input order.

        Raises:
            ConfigError: a decoding parameter is out of range.
            GenerationError: a prompt leaves no room in the context, or the engine or endpoint failed. Use
                `iter_generate` to get the answers before the failure.
        """
        prompts = list(prompts)
        self._check(prompts, decoding)
        completions: list[Completion | None] = [None] * len(prompts)
        # A progress bar for one prompt would only flicker.
        bar = progress("generating", len(prompts), "prompts") if len(prompts) > 1 else nullcontext(lambda _: None)
        with bar as advance:
            for index, completion in self._gathered(prompts, decoding):
                completions[index] = completion
                advance(1)
        return [completion for completion in completions if completion is not None]

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        """Answer all prompts, yielding (position in `prompts`, completion) as each finishes.

        Save each completion as it is yielded, and nothing is lost if a later one fails. Arguments are checked
        immediately, not at the first step. Closing the iterator cancels the remaining requests.

        Args:
            prompts: a sequence, or an iterator. An iterator is read in a thread and its prompts are checked one at a
                time, so that later prompts are made while earlier ones are answered.
            decoding: decoding parameters.

        Raises:
            ConfigError, GenerationError: as `generate`.
            Exception: the exception of an iterator, once all its prompts are answered.
        """
        if isinstance(prompts, Sequence):
            prompts = list(prompts)
            self._check(prompts, decoding)
            return self._gathered(prompts, decoding)
        self._check([], decoding)
        return self._gathered(self._checked(prompts, decoding), decoding)

    def _checked(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Prompt]:
        for prompt in prompts:
            self._check([prompt], decoding)
            yield prompt

    def stream(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Answer one prompt, yielding its parts as they are generated; the last one has the finish reason.

        The texts add up to the result of `generate`. No stop string or part of one appears, and no character is split.
        Closing the iterator cancels the request.

        Raises:
            ConfigError: a decoding parameter is out of range, or `n` is not 1.
            GenerationError: as `generate`.
        """
        self._check([prompt], decoding)
        if decoding.n != 1:
            raise ConfigError(f"decoding: n must be 1 for streams, not {decoding.n}")
        return self._deltas(prompt, decoding)

    def distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, top_k: int | None = None
    ) -> Iterator[tuple[int, Distributions]]:
        """Compute the model's predictions at positions of given token sequences, without sampling.

        Args:
            sequences: token ids, special tokens included.
            starts: the first position of each sequence, from 1; predictions are for all positions from there to the
                end, at least one.
            top_k: number of most probable tokens per position, at least 3; None returns the whole vocabulary.

        Returns:
            (position in `sequences`, distributions), in any order.

        Raises:
            ConfigError: the generator does not support this, or an argument is out of range.
            GenerationError: a sequence is longer than the context, or the engine failed.
        """
        self._check_sequences(sequences, starts)
        if top_k is not None and top_k < MIN_TOP_K:
            raise ConfigError(f"top_k must be at least {MIN_TOP_K}, or None for the whole vocabulary; not {top_k}")
        return self._distributions(sequences, starts, top_k)

    def _check_sequences(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        context = self.context_length
        for number, (ids, start) in enumerate(zip(sequences, starts, strict=True), 1):
            if not 1 <= start < len(ids):
                raise ConfigError(f"sequence {number}: start must be at least 1 and below {len(ids)}, not {start}")
            # Leave room for one token: vLLM rejects prompts without room for an answer.
            if context is not None and len(ids) >= context:
                raise GenerationError(
                    f"sequence {number} has {len(ids):,} tokens, but {self.model} accepts at most {context - 1:,}"
                )

    def token_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Compute the log-probabilities of given tokens; a beginning that sequences share is computed once if possible.

        Args:
            sequences: as in `distributions`.
            starts: as in `distributions`.

        Returns:
            (position in `sequences`, float32 [t] in nats), in any order.

        Raises:
            ConfigError, GenerationError: as `distributions`.
        """
        self._check_sequences(sequences, starts)
        return self._token_logprobs(sequences, starts)

    def _token_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        for place, shown in self._distributions(sequences, starts, MIN_TOP_K):
            yield place, shown.logprobs

    def _distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], top_k: int | None
    ) -> Iterator[tuple[int, Distributions]]:
        raise ConfigError(
            f"{type(self).__name__} has no probabilities of given tokens; use the backend vllm or transformers"
        )

    def reset_prefix_cache(self) -> bool:
        """Empty the prefix cache while no request is running; returns whether there is one.

        Most engines have none, and a server's cache is not ours to empty.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Release the generator's resources; it cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _gathered(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        waiting: dict[int, dict[int, SampledOutput]] = {}
        with closing(self._samples(prompts, decoding)) as samples:
            for sample in samples:
                group = waiting.setdefault(sample.index, {})
                group[sample.sample] = sample
                if len(group) == decoding.n:
                    del waiting[sample.index]
                    yield (
                        sample.index,
                        Completion(
                            prompt=sample.prompt,
                            outputs=tuple(group[i].output for i in range(decoding.n)),
                            n_cached_tokens=group[0].n_cached_tokens,
                            latency_s=max(each.latency_s for each in group.values()),
                            first_token_s=group[0].first_token_s,
                            n_reused_tokens=group[0].n_reused_tokens,
                        ),
                    )

    def _check(self, prompts: Sequence[Prompt], decoding: Decoding) -> None:
        validate(decoding)
        check_vocabulary(decoding, self.vocabulary_size)
        context, n_ids = self.context_length, self.vocabulary_size
        for index, prompt in enumerate(prompts):
            where = f"prompt {index + 1} of {len(prompts)}" if len(prompts) > 1 else "the prompt"
            merge_stops(prompt.stop)
            length = len(prompt.ids)
            if length == 0:
                raise GenerationError(f"{where} has no tokens; there is nothing to continue")
            if n_ids is not None and not 0 <= prompt.ids.min() <= prompt.ids.max() < n_ids:
                [wrong, *_] = [int(token) for token in prompt.ids if not 0 <= token < n_ids]
                raise GenerationError(f"{where} contains the token id {wrong}; {self.model} has ids below {n_ids:,}")
            if context is not None and length >= context:
                raise GenerationError(
                    f"{where} has {length:,} tokens, but {self.model} has a context of {context:,} for prompt and "
                    "completion; use fewer or shorter demonstrations, or a longer context"
                )
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        if decoding.repetition_penalty > 1 and longest > LONG_PROMPT_TOKENS and not self._warned:
            self._warned = True
            warnings.warn(
                f"repetition_penalty {decoding.repetition_penalty:g} also applies to the prompt: with prompts of "
                f"{longest:,} tokens it penalises the vocabulary of the demonstrations; "
                "output_repetition_penalty applies to the output only",
                stacklevel=3,
            )


def check_vocabulary(decoding: Decoding, vocabulary_size: int | None) -> None:
    """Reject token ids that a model does not have; engines crash on some of them.

    Raises:
        ConfigError: a field has such an id; the message names both.
    """
    named = {"stop_token_ids": decoding.stop_token_ids, "logit_bias": [token for token, _ in decoding.logit_bias]}
    for name, tokens in named.items():
        for token in tokens:
            if vocabulary_size is not None and token >= vocabulary_size:
                raise ConfigError(
                    f"decoding: {name} contains the token id {token}; the model has ids below {vocabulary_size:,}"
                )


def as_requests(prompts: Iterable[Prompt], n: int) -> Iterable[tuple[int, int, Prompt]]:
    """Expand prompts to requests (position, sample, prompt); a sequence if `prompts` is one."""
    requests = ((index, sample, prompt) for index, prompt in enumerate(prompts) for sample in range(n))
    return list(requests) if isinstance(prompts, Sequence) else requests


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of an error on one line, shortened; its class name if it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
