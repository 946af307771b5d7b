"""How likely a model finds a given answer after a prompt: the reference likelihood.

The answer's tokens follow the prompt's own, which are exactly those that generation begins with, in the form that the
template gives to an assistant's text. Nothing is sampled, so the figures are deterministic up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import BudgetError, ConfigError, DataError
from ragalign.generation.distributions import MIN_TOP_K, SupportsDistributions, SupportsReuse
from ragalign.generator import Generator
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Prompt

N_FIRST = 32
"""Tokens at the beginning of an answer that are also measured separately: context matters most there."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The likelihood of one answer, as negative log-probabilities in nats per token.

    Attributes:
        n_tokens: tokens of the answer.
        nll: of all of them, the mean.
        nll_first32: of the first 32.
        nll_rest: of those after them; None where there are none.
    """

    n_tokens: int
    nll: float
    nll_first32: float
    nll_rest: float | None

    @property
    def bits_per_token(self) -> float:
        """`nll` in bits."""
        return self.nll / math.log(2)

    @classmethod
    def of(cls, logprobs: NDArray[np.float32]) -> Likelihood:
        """From the log-probabilities of an answer's tokens, float [t]."""
        values = -logprobs.astype(np.float64)
        rest = values[N_FIRST:]
        return cls(
            len(values), float(values.mean()), float(values[:N_FIRST].mean()), float(rest.mean()) if len(rest) else None
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "n_tokens": self.n_tokens, "nll": self.nll, "nll_first32": self.nll_first32, "nll_rest": self.nll_rest,
            "bits_per_token": self.bits_per_token,
        }  # fmt: skip


def continuation(prompt: Prompt, answer: str, template: Template, tokenizer: Tokenizer) -> list[int]:
    """The ids of an answer that follows a prompt.

    They are those that the tokenizer gives in that place, so that prompt and answer together are
    ``tokenizer(prompt.text + answer)``. Where a token of that spans the seam, which the model cannot write after this
    prompt, the answer is tokenised apart.

    Raises:
        DataError: the answer is empty, or is not valid Unicode.
    """
    if not answer.strip():
        raise DataError("the reference is empty")
    text = template.render_answer(answer)
    prefix, suffix = len(tokenizer.prefix_ids), len(tokenizer.suffix_ids)
    before = prompt.token_ids[prefix : len(prompt.ids) - suffix]
    whole = tokenizer.encode(prompt.text + text)
    return whole[len(before) :] if whole[: len(before)] == before else _apart(text, tokenizer)


def likelihoods(
    generator: SupportsDistributions, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Likelihood | BudgetError]]:
    """The likelihood of each answer's ids after its prompt, in any order; an answer that does not fit gives an error.

    Where a prompt reuses kept keys and values, so does the measurement.

    Raises:
        ConfigError: the generator gives no probabilities of given tokens, or none after reused demonstrations.
        GenerationError: the engine failed.
    """
    context = generator.context_length
    fitting = []
    for place, (prompt, ids) in enumerate(zip(prompts, answers, strict=True)):
        n_tokens = len(prompt.ids) + len(ids)
        # Engines reserve one token.
        if context is not None and n_tokens >= context:
            yield place, BudgetError(f"prompt and reference take {n_tokens:,} of {context - 1:,} tokens")
        else:
            fitting.append(place)
    plain = [place for place in fitting if prompts[place].reuse is None]
    if plain:
        sequences = [[*prompts[place].token_ids, *answers[place]] for place in plain]
        starts = [len(prompts[place].ids) for place in plain]
        for number, logprobs in generator.token_logprobs(sequences, starts):
            yield plain[number], Likelihood.of(logprobs)
    reused = [place for place in fitting if prompts[place].reuse is not None]
    if reused:
        if not isinstance(generator, SupportsReuse):
            raise ConfigError("this backend gives no probabilities after reused demonstrations; use vllm")
        found = generator.continuations(
            [prompts[place] for place in reused], [answers[place] for place in reused], top_k=MIN_TOP_K
        )
        for number, shown, _ in found:
            yield reused[number], Likelihood.of(shown.logprobs)


def supporting(generator: Generator) -> SupportsDistributions:
    """The generator, if it can score given tokens.

    Raises:
        ConfigError: it does not.
    """
    if not hasattr(generator, "distributions"):
        raise ConfigError("reference-likelihood needs a backend that gives probabilities: vllm or transformers")
    return cast("SupportsDistributions", generator)


def _apart(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of a text after a line break, where tokenizers do not begin a word as they do at the start of a text."""
    for mark in ("\n", "\n\n"):
        n = tokenizer.split_at(mark + text, len(mark))
        if n is not None:
            return tokenizer.encode(mark + text)[n:]
    return tokenizer.encode(text)
