"""The words of the library as frozen dataclasses."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ragalign.reuse_plan import ReusePlan

T_co = TypeVar("T_co", covariant=True)

Role = Literal["system", "user", "assistant"]
DropReason = Literal["too_long", "budget", "context", "stopped", "planned"]


# What is shown of an object when it is printed: so many characters of a text, and so many answers.
_SHOWN_CHARACTERS = 60
_SHOWN = 2


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}...")


def content_id(instruction: str, response: str) -> str:
    """The id of a demonstration: the first 16 hex digits of a SHA-256 over both texts.

    The instruction's length goes in first, so that moving text between the two fields changes it.
    """
    # surrogatepass: readers refuse lone surrogates with a clear line; hashing must not be where they crash.
    first, second = (text.encode("utf-8", "surrogatepass") for text in (instruction, response))
    return hashlib.sha256(b"%d:%b%b" % (len(first), first, second)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One (instruction, response) pair.

    Attributes:
        instruction: what the user asks.
        response: what a good assistant answers.
        source: the file or dataset that it came from.
        source_id: the row's own id in that source, if it had one.
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
    """One search result: the demonstration's id, its score (higher is closer) and its rank from 1."""

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
    """A conversation that ends with a user turn and waits for an answer.

    Attributes:
        id: its own among those asked together.
        turns: the conversation.
        metadata: other fields of its row, JSON values.
        other_texts: what a pool can have called the same question, beside what `own_texts` makes of the turns.
    """

    id: str
    turns: tuple[Turn, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    other_texts: tuple[str, ...] = field(default=(), compare=False)

    @property
    def text(self) -> str:
        """The last user turn: what retrieval looks for."""
        return self.turns[-1].content

    @property
    def own_texts(self) -> tuple[str, ...]:
        """The instructions under which a pool can hold this very conversation, each once, `text` first.

        These are the user's turns, since a pool takes the first of a conversation; all turns but the system's as lines
        of one text, since it puts a history before its question; and `other_texts`.
        """
        users = [turn.content for turn in reversed(self.turns) if turn.role == "user"]
        whole = "\n".join(turn.content for turn in self.turns if turn.role != "system")
        return tuple(dict.fromkeys((*users, whole, *self.other_texts)))


@dataclass(frozen=True, slots=True)
class UsedDemonstration:
    """A demonstration inside a prompt.

    Attributes:
        id, source_id: the demonstration's.
        score: of the hit; None for a constant demonstration.
        n_tokens: of its whole rendered text, delimiters included.
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
    """A candidate that is not in the prompt, and why.

    Reasons: ``too_long`` (longer than `max_demonstration_tokens`), ``budget`` (did not fit into
    `max_tokens`), ``context`` (did not fit into the model's context beside query and completion),
    ``stopped`` (came after the packer had stopped, or beyond `max_demonstrations`), ``planned`` (would fit, but the
    planner put one in its place that other prompts have too).
    """

    id: str
    source_id: str | None
    score: float | None
    n_tokens: int
    reason: DropReason


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text and tokens that the model sees, and how they came about.

    Attributes:
        pieces: the text in parts: preamble, one part per demonstration, conversation.
        ids: int32 [n], the ids of the whole prompt, with the special tokens that the tokenizer adds (BOS). An
            array, since a million small integers in lists would keep the garbage collector busy.
        demonstrations: those used, in prompt order.
        dropped: candidates not used, best first, each with its reason.
        stop: strings that end the completion.
        n_special_tokens: how many of `ids` are not text, such as BOS.
        n_preamble_tokens, n_query_tokens: tokens of the preamble and of the conversation.
        max_tokens: the token budget that the demonstrations had.
        reuse: which demonstrations need not be computed, since their keys and values are kept; None for a plain
            prompt. They are the first of `demonstrations` after the constant ones.
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
        """Tokens of the text: all of `ids` but the special ones."""
        return len(self.ids) - self.n_special_tokens

    @property
    def token_ids(self) -> list[int]:
        """`ids` as a list: what engines take, and what ``tokenizer(prompt.text)`` gives."""
        ids: list[int] = self.ids.tolist()
        return ids

    @property
    def n_demonstration_tokens(self) -> int:
        """Tokens of all demonstrations together."""
        return sum(used.n_tokens for used in self.demonstrations)


@dataclass(frozen=True, slots=True)
class Output:
    """One sampled answer. `finish_reason` is ``stop``, ``length``, ``abort`` or what the engine says.

    `token_ids` are all that the engine wrote, those of an end-of-text mark or a stop string included, which `text`
    lacks; empty where the engine does not say.
    """

    text: str
    finish_reason: str
    n_tokens: int
    token_ids: tuple[int, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A drawn token, its log-probability, and the most likely tokens at its place as (token, log-probability)."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next part of an answer that is being made.

    Attributes:
        text: what is new; may be empty.
        n_tokens: tokens of the answer so far; 0 as long as the engine does not say.
        finish_reason: why the answer ended, in its last part; None before.
        n_cached_tokens: prompt tokens that came from the prefix cache; None where the engine does not say.
        logprobs: of the tokens that are new, where they were asked for.
        n_reused_tokens: as `Completion.n_reused_tokens`; known in the last part.
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
        n_cached_tokens: prompt tokens that came from the prefix cache; None where the engine does not say.
        latency_s: seconds from handing the prompt over to its last token.
        first_token_s: seconds from when the engine took the prompt up to the first token, so without the wait for
            other prompts of a batch; None where the engine does not say.
        n_reused_tokens: tokens of demonstrations whose kept keys and values were put in place; they are neither in
            `n_cached_tokens` nor computed.
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
        """Tokens of the prompt, special ones included: what the engine was given."""
        return len(self.prompt.ids)

    @property
    def n_output_tokens(self) -> int:
        """Tokens of all answers together."""
        return sum(output.n_tokens for output in self.outputs)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Decoding parameters, under vLLM's names.

    Attributes:
        temperature: 0 is greedy.
        top_p: nucleus sampling, in (0, 1].
        max_tokens: most new tokens.
        n: answers per prompt.
        seed: None draws a new one each time.
        repetition_penalty: counts prompt *and* output tokens in vLLM and transformers (1 is none).
        output_repetition_penalty: the same formula over output tokens only (1 is none); not on endpoints.
        presence_penalty, frequency_penalty: count output tokens only (0 is none).
        stop: stop strings beside the template's own.
        top_k: draw from that many of the most likely tokens; 0 is all.
        min_p: draw from tokens at least this share as likely as the most likely one, in [0, 1]; 0 is all.
        min_tokens: new tokens before an end of text or a stop token may come.
        stop_token_ids: tokens that end an answer, beside the end of text.
        ignore_eos: go on after an end of text.
        logit_bias: (token id, number added to its logit), each in [-100, 100].
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


class ClosableIterator(Protocol[T_co]):
    """An iterator whose work ends when it is closed, such as what a generator function returns."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __next__(self) -> T_co: ...

    def close(self) -> None:
        """End the work; closing twice is harmless."""


class ClosableAsyncIterator(Protocol[T_co]):
    """An asynchronous iterator whose work ends when it is closed."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    def __anext__(self) -> Awaitable[T_co]: ...

    def aclose(self) -> Awaitable[None]:
        """End the work; closing twice is harmless."""


class Generator(Protocol):
    """Turns prompts into completions.

    This is all that the aligner, the service and the bench ask of a generator.
    """

    @property
    def model(self) -> str:
        """The model's name or folder."""

    @property
    def context_length(self) -> int | None:
        """Tokens that prompt and completion share; None where it is not known."""

    @property
    def shares_cpu(self) -> bool:
        """Whether answering keeps this machine's processors busy, so that other work meanwhile only slows it down."""

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        """Answer all prompts, in input order.

        Raises:
            GenerationError: the engine or the endpoint failed.
        """

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        """Answer all prompts, yielding (position in `prompts`, completion) as each is finished.

        Where `prompts` is an iterator, later prompts are made while earlier ones are answered.
        """

    def stream(self, prompt: Prompt, decoding: Decoding) -> ClosableIterator[Delta]:
        """Answer one prompt, yielding its parts as they come; stop strings never appear.

        The last part has a `finish_reason`. Closing the iterator ends the request. Calls come from several threads
        where a service asks.
        """

    def reset_prefix_cache(self) -> bool:
        """Forget the prefixes of earlier prompts; False where there is no cache that could be emptied."""

    def close(self) -> None:
        """Release what the generator holds."""
