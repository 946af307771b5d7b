"""The bodies of requests: what they may hold, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragalign.packing import Packing
from ragalign.serving.errors import ApiError
from ragalign.serving.settings import Limits
from ragalign.types import Decoding, Role, Turn

_INT64 = 2**63
# A seed of any sign becomes one that leaves room for the n that are counted up from it.
_SEEDS = 2**62
_SMALLEST_TOP_P = 1e-6
_MOST_STOPS = 16

B = TypeVar("B", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class TextPart(_Body):
    """A part of a message's content; only text is known here."""

    type: str
    text: str | None = None


class Message(_Body):
    """One message of a conversation."""

    role: str
    content: str | list[TextPart] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class StreamOptions(_Body):
    """What a stream tells beside the answer."""

    include_usage: bool | None = None


class RagalignOptions(BaseModel):
    """How demonstrations are retrieved and packed for this request; a wrong name is an error here.

    Attributes:
        explain: tell which demonstrations were used, with scores and budget.
        max_demonstrations, max_tokens, max_demonstration_tokens, when_full, order: the packer's knobs.
        candidates: hits that the packer chooses from.
        where: metadata that demonstrations must have.
        exclude: ids of demonstrations that must not be used.
        refresh: retrieve anew even if the topic holds.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    explain: bool = False
    max_demonstrations: Annotated[int, Field(ge=0, le=1000)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    max_demonstration_tokens: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    when_full: Literal["stop", "skip"] | None = None
    order: Literal["most_similar_last", "most_similar_first", "random"] | None = None
    candidates: Annotated[int, Field(ge=1, le=1000)] | None = None
    where: (
        Annotated[dict[str, str | int | float | bool | list[str | int | float | bool]], Field(max_length=16)] | None
    ) = None
    exclude: Annotated[list[str], Field(max_length=1000)] | None = None
    refresh: bool = False

    def packing(self, default: Packing) -> Packing:
        """The recipe's knobs with those that the request sets."""
        names = ("max_demonstrations", "max_tokens", "max_demonstration_tokens", "when_full", "order")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(default, **given)


class _Generation(_Body):
    """What both endpoints understand."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=_MOST_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def decoding(self, default: Decoding, limits: Limits) -> Decoding:
        """The recipe's decoding with what the request sets.

        Raises:
            ApiError: 400, beyond a limit of the service.
        """
        given = {
            name: getattr(self, name)
            for name in ("temperature", "presence_penalty", "frequency_penalty", "n")
            if getattr(self, name) is not None
        }
        if self.top_p is not None:
            given["top_p"] = max(self.top_p, _SMALLEST_TOP_P)
        if self.seed is not None:
            given["seed"] = self.seed % _SEEDS
        most = self._most_new_tokens()
        if most is not None and most[1] > limits.max_new_tokens:
            raise ApiError(400, f"{most[0]} is {most[1]:,}; at most {limits.max_new_tokens:,} here", param=most[0])
        given["max_tokens"] = min(default.max_tokens, limits.max_new_tokens) if most is None else most[1]
        if self.n is not None and self.n > limits.max_n:
            raise ApiError(400, f"n is {self.n}; at most {limits.max_n} here", param="n")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stops:
            raise ApiError(400, "a stop string is empty", param="stop")
        return replace(default, **given, stop=(*default.stop, *stops))

    def _most_new_tokens(self) -> tuple[str, int] | None:
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)


class ChatRequest(_Generation):
    """The body of ``POST /v1/chat/completions``; fields beyond these are let pass."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    ragalign: RagalignOptions | None = None

    @property
    def n_logprobs(self) -> int | None:
        """Most likely tokens to report with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def _most_new_tokens(self) -> tuple[str, int] | None:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super()._most_new_tokens()

    def turns(self, limits: Limits) -> list[Turn]:
        """The conversation. Neighbours of one role become one turn; ``developer`` is ``system``.

        Raises:
            ApiError: 400, for what a base model has no place for: tools, images, an answer to go on with.
        """
        self._check_unsupported()
        if len(self.messages) > limits.max_messages:
            raise ApiError(400, f"{len(self.messages)} messages; at most {limits.max_messages} here", param="messages")
        turns: list[Turn] = []
        for number, message in enumerate(self.messages):
            where = f"messages[{number}]"
            role, content = _role(message, where), _content(message, where)
            if role == "system" and turns and turns[-1].role != "system":
                raise ApiError(400, "system messages come before all others", param=f"{where}.role")
            if turns and turns[-1].role == role:
                turns[-1] = Turn(role, f"{turns[-1].content}\n\n{content}")
            else:
                turns.append(Turn(role, content))
        if turns[-1].role != "user":
            raise ApiError(400, "the last message must be the user's", param=f"messages[{len(self.messages) - 1}].role")
        return turns

    def _check_unsupported(self) -> None:
        extra: Mapping[str, Any] = self.model_extra or {}
        for name in ("tools", "functions", "tool_choice", "function_call"):
            if extra.get(name) and extra[name] not in ("none", "auto"):
                raise ApiError(400, f"{name}: tool calls are not supported", param=name, code="unsupported")
        for name in ("audio", "logit_bias", "prediction"):
            if extra.get(name):
                raise ApiError(400, f"{name} is not supported", param=name, code="unsupported")
        form = extra.get("response_format")
        if form and not (isinstance(form, dict) and form.get("type") == "text"):
            raise ApiError(400, "response_format: only text is supported", param="response_format", code="unsupported")
        if self.logprobs is not True and self.top_logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")


class CompletionRequest(_Generation):
    """The body of ``POST /v1/completions``: a prompt that goes to the model as it is."""

    prompt: (
        str
        | list[str]
        | list[Annotated[int, Field(ge=0, lt=2**31)]]
        | list[list[Annotated[int, Field(ge=0, lt=2**31)]]]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, as text or as token ids.

        Raises:
            ApiError: 400, for what is not supported.
        """
        extra: Mapping[str, Any] = self.model_extra or {}
        for name in ("echo", "suffix", "logit_bias", "use_beam_search"):
            if extra.get(name):
                raise ApiError(400, f"{name} is not supported", param=name, code="unsupported")
        if extra.get("best_of") not in (None, 1, self.n):
            raise ApiError(400, "best_of is not supported", param="best_of", code="unsupported")
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            return [[item for item in self.prompt if isinstance(item, int)]]
        return [item for item in self.prompt if not isinstance(item, int)]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a body an error is, and what it is."""

    param: str
    message: str


def parse(kind: type[B], body: Mapping[str, Any]) -> B:
    """A body as its model.

    Raises:
        ApiError: 400, naming the first field that is wrong.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        place = _first(error)
        raise ApiError(
            400, f"{place.param}: {place.message}" if place.param else place.message, param=place.param or None
        ) from None


def _first(error: ValidationError) -> _Place:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # Of the alternatives of a union, the one that came furthest tells most.
    top = details[0]["loc"][:1]
    detail = max((one for one in details if one["loc"][:1] == top), key=lambda one: len(_steps(one["loc"])))
    return _Place(_path(_steps(detail["loc"])), detail["msg"][:1].lower() + detail["msg"][1:])


def _steps(location: tuple[int | str, ...]) -> list[int | str]:
    """The location without the names that pydantic gives the alternatives of a union."""
    return [
        step
        for step in location
        if isinstance(step, int) or (not any(mark in step for mark in "[(") and step not in _KINDS)
    ]


_KINDS = frozenset({"str", "int", "float", "bool"})


def _path(steps: list[int | str]) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def _role(message: Message, where: str) -> Role:
    if message.tool_calls or message.function_call:
        raise ApiError(400, "tool calls are not supported", param=f"{where}.tool_calls", code="unsupported")
    if message.role == "developer":
        return "system"
    if message.role in ("tool", "function"):
        raise ApiError(400, "tool calls are not supported", param=f"{where}.role", code="unsupported")
    if message.role in get_args(Role):
        return cast("Role", message.role)
    raise ApiError(400, "a role is system, developer, user or assistant", param=f"{where}.role")


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
