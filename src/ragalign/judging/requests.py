"""Types of a request to a judge: the answer to judge, the request, its parameters, and the judge's reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ragalign.types import Turn

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer: one text per user turn."""

    model: str
    turns: tuple[str, ...]

    @property
    def text(self) -> str:
        """The answer to the first turn."""
        return self.turns[0]


@dataclass(frozen=True, slots=True)
class Item:
    """An answer to judge.

    Attributes:
        id: the prompt's id; samples and turns of the same prompt share it (statistics cluster by it).
        turns: the user's messages, one per turn.
        answer: the judged model's answer.
        baseline: the answer to compare with; None where answers are scored individually.
        reference: a reference answer per turn, for protocols that show one to the judge.
        category: the prompt's category, such as MT-Bench's ``math``.
        sample: the number of this answer among several to the same prompt, from 0.
        metadata: other fields of the upstream files, JSON values.
    """

    id: str
    turns: tuple[str, ...]
    answer: Answer
    baseline: Answer | None = None
    reference: tuple[str, ...] | None = None
    category: str | None = None
    sample: int = 0
    metadata: Json = field(default_factory=dict)

    @property
    def instruction(self) -> str:
        """The first user turn."""
        return self.turns[0]


@dataclass(frozen=True, slots=True)
class JudgeParameters:
    """Decoding parameters of a judge. `top_logprobs` is the number of most likely tokens to return per position."""

    temperature: float = 0.0
    max_tokens: int = 1024
    top_logprobs: int | None = None

    def as_body(self) -> dict[str, Any]:
        """The fields of a chat-completions request."""
        body: dict[str, Any] = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return body


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """A request to a judge.

    Attributes:
        id: unique within a protocol and a pair of models, and stable across runs.
        item: the item to judge.
        messages: the messages to the judge.
        parameters: the judge's decoding parameters.
        swapped: whether the baseline is shown first; None where nothing is compared.
        turn: the judged turn, from 1.
        prompt_name: the prompt's name in upstream files.
    """

    id: str
    item: Item
    messages: tuple[Turn, ...]
    parameters: JudgeParameters
    swapped: bool | None = None
    turn: int = 1
    prompt_name: str = ""

    def as_body(self) -> dict[str, Any]:
        """The body of a chat-completions request, without the judge's model name."""
        messages = [{"role": turn.role, "content": turn.content} for turn in self.messages]
        return {"messages": messages, **self.parameters.as_body()}


@dataclass(frozen=True, slots=True)
class JudgeUsage:
    """Tokens that a judge was paid for."""

    n_prompt_tokens: int
    n_output_tokens: int

    def __add__(self, other: JudgeUsage) -> JudgeUsage:
        return JudgeUsage(self.n_prompt_tokens + other.n_prompt_tokens, self.n_output_tokens + other.n_output_tokens)


@dataclass(frozen=True, slots=True)
class JudgeReply:
    """A judge's reply.

    Attributes:
        judge: the judge's model name.
        choice: the first choice of the chat completion as the endpoint sent it (``message``, ``finish_reason``,
            ``logprobs``); AlpacaEval stores exactly this.
        usage: token counts, if the endpoint reports them.
        latency_s: seconds from request to reply.
        created: Unix time of the reply.
    """

    judge: str
    choice: Json
    usage: JudgeUsage | None = None
    latency_s: float | None = None
    created: float | None = None

    @classmethod
    def from_text(cls, text: str, judge: str = "") -> JudgeReply:
        """Create a reply from its text, as in recorded files."""
        return cls(judge, {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"})

    @property
    def text(self) -> str:
        """The reply's text, with its parts joined; empty if the judge refused or sent none."""
        return _joined(self._message.get("content"), "text")

    @property
    def refusal(self) -> str | None:
        """The judge's refusal, if the endpoint marks one as a field of the message or a part of its content."""
        refusal = self._message.get("refusal")
        parts = self._message.get("content")
        found = refusal if isinstance(refusal, str) else ""
        return found or (_joined(parts, "refusal") if isinstance(parts, list) else "") or None

    @property
    def why_empty(self) -> str:
        """The reason why the text is empty, as far as the endpoint tells."""
        ended = self.choice.get("finish_reason")
        if ended == "content_filter":
            return "a content filter removed the judge's reply"
        if ended == "length":
            return "the judge's reply is empty: it reached the token limit before any text, as reasoning models can"
        return "the judge's reply is empty"

    @property
    def _message(self) -> Mapping[str, Any]:
        message = self.choice.get("message")
        return message if isinstance(message, Mapping) else {}


def _joined(content: object, kind: str) -> str:
    """The text of a message's content: a string, or parts of one kind (``{"type": "text", "text": ...}``)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part.get(kind) if isinstance(part, Mapping) else part if kind == "text" else None for part in content]
    return "".join(part for part in parts if isinstance(part, str))
