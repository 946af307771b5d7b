"""A base for generators: checks before any work, input order, gathering samples into completions."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ragalign._progress import progress
from ragalign.errors import ConfigError, GenerationError
from ragalign.generation.distributions import MIN_TOP_K, Distributions
from ragalign.generation.presets import validate
from ragalign.stopping import merge_stops
from ragalign.types import ClosableIterator, Completion, Decoding, Delta, Output, Prompt

# The prompts for which URIAL chose its repetition penalty hold one to two thousand tokens.
LONG_PROMPT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class SampledOutput:
    """One finished answer: the `sample`-th to `prompt`, which is at `index` of those asked."""

    index: int
    sample: int
    prompt: Prompt
    output: Output
    n_cached_tokens: int | None
    latency_s: float
    first_token_s: float | None = None
    n_reused_tokens: int = 0


class BaseGenerator(ABC):
    """A base for generators whose engine yields samples in any order: it checks, gathers and orders them.

    Signatures ask for the protocol `ragalign.Generator`; a generator of your own does not have to derive from this.

    `Decoding.n` answers are `n` separate requests; with a seed, the i-th one (from 0) gets seed + i, so that
    an answer depends neither on the batch nor on how many others are asked for. `Completion.n_cached_tokens` and
    `first_token_s` are those of the first: its siblings find the whole prompt in the cache.
    """

    _warned = False

    @property
    @abstractmethod
    def model(self) -> str:
        """The model's name or folder."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """Tokens that prompt and completion share; None where it is not known."""

    @property
    def vocabulary_size(self) -> int | None:
        """Token ids from 0 up to this one exclusive are the model's; None where it is not known."""
        return None

    @property
    def unsupported(self) -> frozenset[str]:
        """The fields of `Decoding` that this generator cannot honour."""
        return frozenset()

    @property
    def shares_cpu(self) -> bool:
        """Whether answering keeps this machine's processors busy, so that other work meanwhile only slows it down."""
        return False

    @abstractmethod
    def _samples(self, prompts: Iterable[Prompt], decoding: Decoding) -> ClosableIterator[SampledOutput]:
        """Answer every prompt `decoding.n` times; yields samples as they finish, in any order.

        Making each prompt of an iterator takes time: read it in a thread, see `Ahead`.
        """

    @abstractmethod
    def _deltas(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Answer one prompt once, yielding its parts as they come; the last one says why it ended."""

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        """Answer all prompts; the completions come back in input order.

        Raises:
            ConfigError: a decoding parameter is out of range.
            GenerationError: a prompt leaves no room in the context, or the engine or endpoint failed;
                `iter_generate` hands over what was answered before that.
        """
        prompts = list(prompts)
        self._check(prompts, decoding)
        completions: list[Completion | None] = [None] * len(prompts)
        # A bar for one prompt would only flicker.
        bar = progress("generating", len(prompts), "prompts") if len(prompts) > 1 else nullcontext(lambda _: None)
        with bar as advance:
            for index, completion in self._gathered(prompts, decoding):
                completions[index] = completion
                advance(1)
        return [completion for completion in completions if completion is not None]

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        """Answer all prompts, yielding (position in `prompts`, completion) as each is finished.

        Whoever writes each completion down as it comes loses nothing when a later one fails. Arguments are
        checked at once, not at the first step. Closing the iterator ends the work that is left.

        Args:
            prompts: a sequence; or an iterator, which is read in a thread and checked prompt by prompt, so that later
                prompts are made while earlier ones are answered.
            decoding: how to decode.

        Raises:
            ConfigError, GenerationError: as `generate`.
            Exception: what an iterator raises, once all that it gave before is answered.
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
        """Answer one prompt, yielding its parts as they come; the last one says why the answer ended.

        The texts add up to the one that `generate` gives. No stop string or part of one appears, and no
        character is split. Closing the iterator ends the request.

        Raises:
            ConfigError: a decoding parameter is out of range, or `n` is not 1.
            GenerationError: as `generate`.
        """
        self._check([prompt], decoding)
        if decoding.n != 1:
            raise ConfigError(f"decoding: a stream is one answer, so n must be 1, not {decoding.n}")
        return self._deltas(prompt, decoding)

    def distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, top_k: int | None = None
    ) -> Iterator[tuple[int, Distributions]]:
        """The model's expectations at given positions of given token sequences; nothing is sampled.

        Args:
            sequences: token ids, special ones included.
            starts: for each, the first position (from 1) to look at; all from there to its end are, at least one.
            top_k: how many of the most probable tokens to give at each position, at least 3; None gives the whole
                vocabulary.

        Returns:
            (position in `sequences`, distributions), in any order.

        Raises:
            ConfigError: this generator gives no probabilities of given tokens, or an argument is out of range.
            GenerationError: a sequence is longer than the context, or the engine failed.
        """
        context = self.context_length
        for number, (ids, start) in enumerate(zip(sequences, starts, strict=True), 1):
            if not 1 <= start < len(ids):
                raise ConfigError(f"sequence {number}: start is {start}; it must be at least 1 and below {len(ids)}")
            # One is kept free: vLLM does not take a prompt after which nothing could be written.
            if context is not None and len(ids) >= context:
                raise GenerationError(
                    f"sequence {number} holds {len(ids):,} tokens, but {self.model} takes {context - 1:,} to look at"
                )
        if top_k is not None and top_k < MIN_TOP_K:
            raise ConfigError(f"top_k must be at least {MIN_TOP_K}, or None for the whole vocabulary; not {top_k}")
        return self._distributions(sequences, starts, top_k)

    def _distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], top_k: int | None
    ) -> Iterator[tuple[int, Distributions]]:
        raise ConfigError(
            f"{type(self).__name__} gives no probabilities of given tokens; use the backend vllm or transformers"
        )

    def reset_prefix_cache(self) -> bool:
        """Forget the prefixes of earlier prompts, and say whether there is a cache of our own; nothing may be running.

        Most engines keep none, and a server's is not ours to empty.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Release what the generator holds; it cannot be used afterwards."""

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
                            latency_s=max(one.latency_s for one in group.values()),
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
                raise GenerationError(f"{where} holds no tokens; there is nothing to continue")
            if n_ids is not None and not 0 <= prompt.ids.min() <= prompt.ids.max() < n_ids:
                [wrong, *_] = [int(token) for token in prompt.ids if not 0 <= token < n_ids]
                raise GenerationError(f"{where} holds the token id {wrong}; {self.model} has ids below {n_ids:,}")
            if context is not None and length >= context:
                raise GenerationError(
                    f"{where} holds {length:,} tokens, but {self.model} takes {context:,} for prompt and completion "
                    "together; use fewer or shorter demonstrations, or a longer context"
                )
        longest = max((len(prompt.ids) for prompt in prompts), default=0)
        if decoding.repetition_penalty > 1 and longest > LONG_PROMPT_TOKENS and not self._warned:
            self._warned = True
            warnings.warn(
                f"repetition_penalty {decoding.repetition_penalty:g} counts the prompt's tokens too: with prompts of "
                f"{longest:,} tokens it punishes the vocabulary of the demonstrations; "
                "output_repetition_penalty counts the output only",
                stacklevel=3,
            )


def check_vocabulary(decoding: Decoding, vocabulary_size: int | None) -> None:
    """Refuse token ids that a model does not have; engines crash on some of them.

    Raises:
        ConfigError: names the field and the id.
    """
    named = {"stop_token_ids": decoding.stop_token_ids, "logit_bias": [token for token, _ in decoding.logit_bias]}
    for name, tokens in named.items():
        for token in tokens:
            if vocabulary_size is not None and token >= vocabulary_size:
                raise ConfigError(
                    f"decoding: {name} holds the token id {token}; the model has ids below {vocabulary_size:,}"
                )


def as_requests(prompts: Iterable[Prompt], n: int) -> Iterable[tuple[int, int, Prompt]]:
    """(position, sample, prompt) of all that is to be asked; a sequence where `prompts` is one."""
    requests = ((index, sample, prompt) for index, prompt in enumerate(prompts) for sample in range(n))
    return list(requests) if isinstance(prompts, Sequence) else requests


def one_line(error: BaseException, limit: int = 300) -> str:
    """The message of a foreign error on one line, shortened; its class name where it has no message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
