"""The library's data types, as frozen dataclasses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ragalign.reuse_plan import ReusePlan

Role = Literal["system", "user", "assistant"]
DropReason = Literal["too_long", "budget", "context", "stopped", "planned"]


# Limits of reprs: characters of a text, and number of answers.
_SHOWN_CHARACTERS = 60
_SHOWN = 2


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}...")


def content_id(instruction: str, response: str) -> str:
    """Compute the id of a demonstration: the first 16 hex digits of a SHA-256 over both texts.

    The hash includes the instruction's length, so that moving text between the two fields changes it.
    """
    # surrogatepass: readers reject lone surrogates with a clear message; hashing must not crash on them.
    first, second = (text.encode("utf-8", "surrogatepass") for text in (instruction, response))
    return hashlib.sha256(b"%d:%b%b" % (len(first), first, second)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One (instruction, response) pair.

    Attributes:
        instruction: the user's question or request.
        response: a good answer.
        source: the file or dataset that it came from.
        source_id: the row's id in that source, if any.
        metadata: the row's other fields, JSON values.
        id: content hash of instruction and response (see `content_id`).
    """

    instruction: str
    response: str
    source: str = ""
    source_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", content_id(self.instruction, self.response))


@dataclass(frozen=True, slots=True)
class Hit:
    """A search result: the demonstration's id, its score (higher is better) and its rank from 1."""

    id: str
    score: float
    rank: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Query:
    """A conversation to answer, which ends with a user turn.

    Attributes:
        id: unique among the queries of a batch.
        turns: the conversation.
        metadata: other fields of its row, JSON values.
        other_texts: further texts under which a pool can have the same question; see `own_texts`.
    """

    id: str
    turns: tuple[Turn, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    other_texts: tuple[str, ...] = field(default=(), compare=False)

    @property
    def text(self) -> str:
        """The last user turn, which is the text for retrieval."""
        return self.turns[-1].content

    @property
    def own_texts(self) -> tuple[str, ...]:
        """The instructions under which a pool can have this conversation, without duplicates, `text` first.

        These are the user's turns (a pool uses the first turn of a conversation), all turns but the system's joined by
        line breaks (a pool puts the history before the question), and `other_texts`.
        """
        users = [turn.content for turn in reversed(self.turns) if turn.role == "user"]
        whole = "\n".join(turn.content for turn in self.turns if turn.role != "system")
        return tuple(dict.fromkeys((*users, whole, *self.other_texts)))


@dataclass(frozen=True, slots=True)
class UsedDemonstration:
    """A demonstration inside a prompt.

    Attributes:
        id, source_id: from the demonstration.
        score: score of the hit; None for a constant demonstration.
        n_tokens: tokens of its rendered text, delimiters included.
        start: position of its first token in `Prompt.ids`.
    """

    id: str
    source_id: str | None
    score: float | None
    n_tokens: int
    start: int = 0

    @property
    def span(self) -> slice:
        """Its tokens: ``prompt.ids[used.span]``."""
        return slice(self.start, self.start + self.n_tokens)


@dataclass(frozen=True, slots=True)
class DroppedDemonstration:
    """A candidate that is not in the prompt, with the reason.

    Reasons: ``too_long`` (longer than `max_demonstration_tokens`), ``budget`` (did not fit into
    `max_tokens`), ``context`` (did not fit into the model's context beside query and completion),
    ``stopped`` (came after the packer had stopped, or beyond `max_demonstrations`), ``planned`` (would fit, but the
    planner replaced it by one that other prompts also have).
    """

    id: str
    source_id: str | None
    score: float | None
    n_tokens: int
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of the model as text and tokens, with the demonstrations in it.

    Attributes:
        pieces: the text in parts: preamble, one part per demonstration, conversation.
        ids: int32 [n], the ids of the whole prompt, with the special tokens that the tokenizer adds (BOS). An array,
            since lists of millions of integers would slow down the garbage collector.
        demonstrations: those used, in prompt order.
        dropped: candidates not used, best first, each with its reason.
        stop: strings that end the completion.
        n_special_tokens: number of special tokens in `ids`, such as BOS.
        n_preamble_tokens, n_query_tokens: tokens of the preamble and of the conversation.
        max_tokens: the token budget of the demonstrations.
        reuse: the demonstrations whose kept keys and values are reused, the first ones after the constants; None for a
            plain prompt.
        opening: the conversation's first question, by which a service tells which prompts continue it; empty elsewhere.
    """

    pieces: tuple[str, ...]
    ids: NDArray[np.int32] = field(compare=False)
    demonstrations: tuple[UsedDemonstration, ...] = ()
    dropped: tuple[DroppedDemonstration, ...] = ()
    stop: tuple[str, ...] = ()
    n_special_tokens: int = 0
    n_preamble_tokens: int = 0
    n_query_tokens: int = 0
    max_tokens: int = 0
    reuse: ReusePlan | None = None
    opening: str = field(default="", compare=False)

    def __repr__(self) -> str:
        counts = f"{self.n_tokens:,} tokens, {len(self.demonstrations)} demonstrations"
        dropped = f", {len(self.dropped)} dropped" if self.dropped else ""
        return f"Prompt({counts}{dropped}, {_shortened(self.pieces[-1] if self.pieces else '')})"

    @property
    def text(self) -> str:
        """The whole prompt as text, without special tokens."""
        return "".join(self.pieces)

    @property
    def n_tokens(self) -> int:
        """Tokens of the text, without special tokens."""
        return len(self.ids) - self.n_special_tokens

    @property
    def token_ids(self) -> list[int]:
        """`ids` as a list, for engines; equal to ``tokenizer(prompt.text)``."""
        ids: list[int] = self.ids.tolist()
        return ids

    @property
    def reused(self) -> tuple[UsedDemonstration, ...]:
        """The demonstrations whose kept keys and values are to be reused; what cannot be loaded is computed."""
        if self.reuse is None:
            return ()
        start = self.reuse.n_prefix_tokens
        return tuple(used for used in self.demonstrations if start <= used.start < start + self.reuse.n_tokens)

    @property
    def n_demonstration_tokens(self) -> int:
        """Tokens of all demonstrations together."""
        return sum(used.n_tokens for used in self.demonstrations)


@dataclass(frozen=True, slots=True)
class Output:
    """A sampled answer. `finish_reason` is ``stop``, ``length``, ``abort`` or another value of the engine.

    `token_ids` are all generated tokens, including those of an end-of-text mark or a stop string, which `text` does not
    have. They are empty if the engine does not report them.
    """

    text: str
    finish_reason: str
    n_tokens: int
    token_ids: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A sampled token, its log-probability, and the most likely tokens there as (token, log-probability)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next part of a streamed answer.

    Attributes:
        text: the new text, possibly empty.
        n_tokens: tokens of the answer so far; 0 until the engine reports them.
        finish_reason: why the answer ended, in its last part; None before.
        n_cached_tokens: prompt tokens that came from the prefix cache; None if the engine does not report them.
        logprobs: log-probabilities of the new tokens, if requested.
        n_reused_tokens: as `Completion.n_reused_tokens`; set in the last part.
    """

    text: str
    n_tokens: int = 0
    finish_reason: str | None = None
    n_cached_tokens: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    n_reused_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """A generator's answers to one prompt.

    Attributes:
        prompt: the prompt that was answered.
        outputs: the answers, `Decoding.n` of them.
        n_cached_tokens: prompt tokens that came from the prefix cache; None if the engine does not report them.
        latency_s: seconds from submitting the prompt to the last token.
        first_token_s: seconds from when the engine schedules the prompt to the first token, without queueing time; None
            if the engine does not report it.
        n_reused_tokens: tokens of demonstrations whose kept keys and values were reused; neither computed nor included
            in `n_cached_tokens`.
    """

    prompt: Prompt
    outputs: tuple[Output, ...]
    n_cached_tokens: int | None = None
    latency_s: float = 0.0
    first_token_s: float | None = None
    n_reused_tokens: int = 0

    def __repr__(self) -> str:
        texts = ", ".join(_shortened(output.text) for output in self.outputs[:_SHOWN])
        others = f", and {len(self.outputs) - _SHOWN} more" if len(self.outputs) > _SHOWN else ""
        reason = f"finish_reason={self.finish_reason!r}, " if self.outputs else ""
        cached = "" if self.n_cached_tokens is None else f" ({self.n_cached_tokens:,} cached)"
        counts = f"{self.n_prompt_tokens:,} prompt tokens{cached}, {self.n_output_tokens:,} output tokens"
        return f"Completion({texts}{others}, {reason}{counts})"

    @property
    def text(self) -> str:
        """The first answer."""
        return self.outputs[0].text

    @property
    def finish_reason(self) -> str:
        """Why the first answer ended."""
        return self.outputs[0].finish_reason

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt, special tokens included."""
        return len(self.prompt.ids)

    @property
    def n_output_tokens(self) -> int:
        """The total number of tokens of all answers."""
        return sum(output.n_tokens for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding parameters, under vLLM's names.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus sampling, in (0, 1].
        max_tokens: maximum new tokens.
        n: answers per prompt.
        seed: random seed; None samples differently each time.
        repetition_penalty: applies to prompt *and* output tokens in vLLM and transformers (1 is none).
        output_repetition_penalty: the same formula over output tokens only (1 is none); not supported by endpoints.
        presence_penalty, frequency_penalty: penalty over output tokens only (0 is none).
        stop: stop strings in addition to the template's.
        top_k: sample from the `top_k` most likely tokens; 0 is all.
        min_p: sample from tokens with at least this share of the highest probability, in [0, 1]; 0 is all.
        min_tokens: minimum new tokens before an end of text or a stop token.
        stop_token_ids: tokens that end an answer, in addition to the end of text.
        ignore_eos: continue after an end of text.
        logit_bias: (token id, value added to its logit), each value in [-100, 100].
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 1024
    n: int = 1
    seed: int | None = None
    repetition_penalty: float = 1.0
    output_repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
