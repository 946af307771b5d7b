"""Request bodies, and reading conversations, prompts and decoding parameters from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from ragalign.packing import Packing
from ragalign.serving.body_models import Body, at_most
from ragalign.serving.errors import ApiError
from ragalign.serving.sampling import Capabilities, SamplingRequest
from ragalign.types import Role, Turn

_MOST_PARTS = 1_000
_MOST_OPTIONS = 32


class TextPart(Body):
    """A part of a message's content; only text is supported."""

    type: str
    text: str | None = None


class Message(Body):
    """One message of a conversation."""

    role: str
    content: Annotated[str | Annotated[list[TextPart], Field(fail_fast=True)], at_most(_MOST_PARTS)] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


_Scalar = str | int | float | bool
_Metadata = Annotated[_Scalar | Annotated[list[_Scalar], Field(fail_fast=True)], at_most(1000)]


class RagalignOptions(BaseModel):
    """Retrieval and packing options of a request; unknown names are errors.

    Attributes:
        explain: report which demonstrations were used, with scores and budget.
        max_demonstrations, max_tokens, max_demonstration_tokens, when_full, refill, order: see
            `ragalign.packing.Packing`.
        candidates: number of hits that the packer chooses from.
        where: metadata values that demonstrations must match.
        exclude: ids of demonstrations not to use.
        refresh: retrieve again even if the topic is the same.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    explain: bool = False
    max_demonstrations: Annotated[int, Field(ge=0, le=1000)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    max_demonstration_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    when_full: Literal["stop", "skip"] | None = None
    refill: bool | None = None
    order: Literal["most_similar_last", "most_similar_first", "random"] | None = None
    candidates: Annotated[int, Field(ge=1, le=1000)] | None = None
    where: Annotated[dict[str, _Metadata], at_most(16)] | None = None
    exclude: Annotated[list[str], Field(fail_fast=True), at_most(1000)] | None = None
    refresh: bool = False

    def packing(self, default: Packing) -> Packing:
        """The recipe's packing with the request's changes."""
        names = ("max_demonstrations", "max_tokens", "max_demonstration_tokens", "when_full", "refill", "order")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(default, **given)


class ChatRequest(SamplingRequest):
    """The body of ``POST /v1/chat/completions``; further fields are ignored, with a warning."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    ragalign: Annotated[RagalignOptions, at_most(_MOST_OPTIONS)] | None = None

    @property
    def n_logprobs(self) -> int | None:
        """Number of most likely tokens to report with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def _most_new_tokens(self) -> tuple[str, int] | None:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super()._most_new_tokens()

    def turns(self) -> list[Turn]:
        """The conversation. Consecutive messages of the same role become one turn; ``developer`` is ``system``.

        Raises:
            ApiError: 400, for features that base models do not support: tools, images, continuing an answer.
        """
        self._check_unsupported()
        turns: list[Turn] = []
        for number, message in enumerate(self.messages):
            where = f"messages[{number}]"
            role, content = _role(message, where), _content(message, where)
            if role == "system" and turns and turns[-1].role != "system":
                raise ApiError(400, "system messages must come first", param=f"{where}.role")
            if turns and turns[-1].role == role:
                turns[-1] = Turn(role, f"{turns[-1].content}\n\n{content}")
            else:
                turns.append(Turn(role, content))
        if turns[-1].role != "user":
            raise ApiError(400, "the last message must be the user's", param=f"messages[{len(self.messages) - 1}].role")
        return turns

    def _check_unsupported(self) -> None:
        self.check_supported()
        if self.logprobs is not True and self.top_logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")


class CompletionRequest(SamplingRequest):
    """The body of ``POST /v1/completions``: a prompt for the model, without demonstrations."""

    prompt: (
        str
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompts(self, engine: Capabilities) -> list[str | list[int]]:
        """The prompts, as text or as token ids.

        Raises:
            ApiError: 400, for unsupported values.
        """
        self.check_supported()
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            found: list[str | list[int]] = [[item for item in self.prompt if isinstance(item, int)]]
        else:
            found = [item for item in self.prompt if not isinstance(item, int)]
        for prompt in found:
            if isinstance(prompt, list) and prompt:
                engine.check_token(min(prompt), "prompt")
                engine.check_token(max(prompt), "prompt")
        return found


def _role(message: Message, where: str) -> Role:
    if message.tool_calls or message.function_call:
        raise ApiError(400, "tool calls are not supported", param=f"{where}.tool_calls", code="unsupported")
    if message.role == "developer":
        return "system"
    if message.role in ("tool", "function"):
        raise ApiError(400, "tool calls are not supported", param=f"{where}.role", code="unsupported")
    if message.role in get_args(Role):
        return cast("Role", message.role)
    raise ApiError(400, "role must be system, developer, user or assistant", param=f"{where}.role")


def _content(message: Message, where: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        raise ApiError(400, "a message needs content", param=f"{where}.content")
    texts = []
    for number, part in enumerate(message.content):
        if part.type != "text":
            raise ApiError(
                400,
                f"only text is supported, not {part.type[:40]!r}",
                param=f"{where}.content[{number}].type",
                code="unsupported",
            )
        if part.text is None:
            raise ApiError(400, "a text part needs its text", param=f"{where}.content[{number}].text")
        texts.append(part.text)
    return "\n".join(texts)
