"""Request bodies: their fields, and the conversation, prompts and decoding that they ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ragalign.generation.presets import without_unsupported
from ragalign.packing import Packing
from ragalign.serving.errors import ApiError
from ragalign.serving.settings import Limits
from ragalign.types import Decoding, Role, Turn

_INT64 = 2**63
# Seeds of any sign are folded into this range, with room for the n that are counted up from them.
_SEEDS = 2**62
_SMALLEST_TOP_P = 1e-6
_MOST_STOPS = 16
_MOST_STOP_CHARACTERS = 1_024
_MOST_TOKENS_NAMED = 1_024
_MOST_WARNINGS = 20
# Fields of OpenAI's protocol that make no difference to an answer here, so that ignoring them needs no warning.
_WITHOUT_EFFECT = frozenset(
    {
        *("functions", "function_call", "tools", "tool_choice", "parallel_tool_calls", "response_format", "modalities"),
        *("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
        *("audio", "prediction", "echo", "suffix", "best_of"),
    }
)
# What would change an answer, and no base model here can do.
_UNSUPPORTED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
_NEUTRAL = Decoding()
_MOST_PARTS = 1_000
_MOST_OPTIONS = 32
_Token = Annotated[int, Field(ge=0, lt=2**31)]

_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

B = TypeVar("B", bound=BaseModel)


def _at_most(most: int) -> BeforeValidator:
    """Refuse a list or an object by its size before anything looks into it."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"{len(value):,} items; at most {most:,} here")
        return value

    return BeforeValidator(check)


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class TextPart(_Body):
    """A part of a message's content; only text is known here."""

    type: str
    text: str | None = None


class Message(_Body):
    """One message of a conversation."""

    role: str
    content: Annotated[str | Annotated[list[TextPart], Field(fail_fast=True)], _at_most(_MOST_PARTS)] | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None


class StreamOptions(_Body):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None


_Scalar = str | int | float | bool
_Metadata = Annotated[_Scalar | Annotated[list[_Scalar], Field(fail_fast=True)], _at_most(1000)]


class RagalignOptions(BaseModel):
    """How demonstrations are retrieved and packed for this request; a wrong name is an error here.

    Attributes:
        explain: report which demonstrations were used, with scores and budget.
        max_demonstrations, max_tokens, max_demonstration_tokens, when_full, refill, order: see
            `ragalign.packing.Packing`.
        candidates: hits that the packer chooses from.
        where: metadata that demonstrations must have.
        exclude: ids of demonstrations that must not be used.
        refresh: retrieve again even if the topic holds.
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
    where: Annotated[dict[str, _Metadata], _at_most(16)] | None = None
    exclude: Annotated[list[str], Field(fail_fast=True), _at_most(1000)] | None = None
    refresh: bool = False

    def packing(self, default: Packing) -> Packing:
        """The recipe's packing with what the request sets."""
        names = ("max_demonstrations", "max_tokens", "max_demonstration_tokens", "when_full", "refill", "order")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return replace(default, **given)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can honour.

    Attributes:
        vocabulary_size: token ids are below this; None where it is not known.
        unsupported: fields of `Decoding` that it cannot honour.
    """

    vocabulary_size: int | None = None
    unsupported: frozenset[str] = frozenset()

    def check_token(self, token: int, field: str) -> None:
        """Check that the model has a token.

        Raises:
            ApiError: 400, naming it.
        """
        size = self.vocabulary_size
        if size is not None and not 0 <= token < size:
            raise ApiError(400, f"{field}: token id {token} is not in the vocabulary (0 to {size - 1:,})", param=field)

    def served(self, default: Decoding) -> tuple[Decoding, list[str]]:
        """A recipe's decoding without what the engine cannot honour, and the names of those fields."""
        return without_unsupported(default, self.unsupported)


class _Generation(_Body):
    """The fields of both endpoints: OpenAI's, and those that vLLM adds under its own names."""

    model: str
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    output_repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[_Token], Field(fail_fast=True), _at_most(_MOST_TOKENS_NAMED)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], _at_most(_MOST_TOKENS_NAMED)] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def unknown_fields(self) -> list[str]:
        """The names of fields that were ignored, since nothing here is called so."""
        unknown = [name for name in self.model_extra or {} if name not in _WITHOUT_EFFECT]
        options = self.stream_options.model_extra or {} if self.stream_options else {}
        return unknown + [f"stream_options.{name}" for name in options if name != "include_obfuscation"]

    def warnings(self, lost: Sequence[str]) -> list[str]:
        """The answer's ``warnings``: ignored fields, and fields of the recipe's decoding that are not applied."""
        known = type(self).model_fields
        unknown = self.unknown_fields()
        found = [f"the recipe's {name} is not applied: this engine cannot honour it" for name in lost]
        for name in unknown[:_MOST_WARNINGS]:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            found.append(f"unknown field {name[:64]!r} was ignored{hint}")
        if len(unknown) > _MOST_WARNINGS:
            found.append(f"{len(unknown) - _MOST_WARNINGS} more unknown fields were ignored")
        return found

    def decoding(self, default: Decoding, limits: Limits, engine: Capabilities) -> Decoding:
        """The recipe's decoding with what the request sets.

        Raises:
            ApiError: 400, beyond a limit of the service or what the engine can do; it names the field.
        """
        names = ("temperature", "presence_penalty", "frequency_penalty", "n", "min_p", "min_tokens", "ignore_eos")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.top_p is not None:
            given["top_p"] = max(self.top_p, _SMALLEST_TOP_P)
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)
        if self.seed is not None:
            given["seed"] = self.seed % _SEEDS
        given["max_tokens"] = self._max_tokens(default, limits)
        if self.min_tokens is None:
            given["min_tokens"] = min(default.min_tokens, given["max_tokens"])
        elif self.min_tokens > given["max_tokens"]:
            message = f"min_tokens is {self.min_tokens:,}, above the {given['max_tokens']:,} that the answer may have"
            raise ApiError(400, message, param="min_tokens")
        if self.n is not None and self.n > limits.max_n:
            raise ApiError(400, f"n is {self.n}; at most {limits.max_n} here", param="n")
        given |= self._penalties()
        if self.stop_token_ids is not None:
            for token in self.stop_token_ids:
                engine.check_token(token, "stop_token_ids")
            given["stop_token_ids"] = tuple(dict.fromkeys(self.stop_token_ids))
        if self.logit_bias is not None:
            given["logit_bias"] = tuple((_token_id(key, engine), bias) for key, bias in self.logit_bias.items())
        for name in engine.unsupported:
            if given.get(name, getattr(_NEUTRAL, name)) != getattr(_NEUTRAL, name):
                raise ApiError(400, f"{name}: this engine cannot honour it", param=name, code="unsupported")
        return replace(default, **given, stop=(*default.stop, *self._stops()))

    def _max_tokens(self, default: Decoding, limits: Limits) -> int:
        most = self._most_new_tokens()
        if most is None:
            return min(default.max_tokens, limits.max_new_tokens)
        if most[1] > limits.max_new_tokens:
            raise ApiError(400, f"{most[0]} is {most[1]:,}; at most {limits.max_new_tokens:,} here", param=most[0])
        return most[1]

    def _penalties(self) -> dict[str, float]:
        """Repetition penalties: one that the request sets takes the place of the recipe's, whichever that is."""
        whole, output = self.repetition_penalty, self.output_repetition_penalty
        if whole is None and output is None:
            return {}
        if (whole or 1) != 1 and (output or 1) != 1:
            raise ApiError(
                400,
                "repetition_penalty and output_repetition_penalty would punish the output twice; set one of them",
                param="output_repetition_penalty",
            )
        return {"repetition_penalty": whole or 1.0, "output_repetition_penalty": output or 1.0}

    def _stops(self) -> list[str]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > _MOST_STOPS:
            raise ApiError(400, f"stop holds {len(stops)} strings; at most {_MOST_STOPS} here", param="stop")
        longest = max(map(len, stops), default=0)
        if longest > _MOST_STOP_CHARACTERS:
            limit = f"at most {_MOST_STOP_CHARACTERS:,} here"
            raise ApiError(400, f"a stop string has {longest:,} characters; {limit}", param="stop")
        if "" in stops:
            raise ApiError(400, "a stop string is empty", param="stop")
        return stops

    def _most_new_tokens(self) -> tuple[str, int] | None:
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)


class ChatRequest(_Generation):
    """The body of ``POST /v1/chat/completions``; further fields are ignored, with a warning."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    ragalign: Annotated[RagalignOptions, _at_most(_MOST_OPTIONS)] | None = None

    @property
    def n_logprobs(self) -> int | None:
        """Most likely tokens to report with each token; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def _most_new_tokens(self) -> tuple[str, int] | None:
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return super()._most_new_tokens()

    def turns(self) -> list[Turn]:
        """The conversation. Neighbours of one role become one turn; ``developer`` is ``system``.

        Raises:
            ApiError: 400, for what a base model has no place for: tools, images, an answer to go on with.
        """
        self._check_unsupported()
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
        for name in ("audio", "prediction", *_UNSUPPORTED):
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
        | Annotated[list[str], Field(fail_fast=True)]
        | Annotated[list[_Token], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[_Token], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def prompts(self, engine: Capabilities) -> list[str | list[int]]:
        """The prompts, as text or as token ids.

        Raises:
            ApiError: 400, for what is not supported.
        """
        extra: Mapping[str, Any] = self.model_extra or {}
        for name in ("echo", "suffix", "use_beam_search", *_UNSUPPORTED):
            if extra.get(name):
                raise ApiError(400, f"{name} is not supported", param=name, code="unsupported")
        if extra.get("best_of") not in (None, 1, self.n):
            raise ApiError(400, "best_of is not supported", param="best_of", code="unsupported")
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(item, int) for item in self.prompt):
            found: list[str | list[int]] = [[item for item in self.prompt if isinstance(item, int)]]
        else:
            found = [item for item in self.prompt if not isinstance(item, int)]
        for prompt in found:
            if isinstance(prompt, list) and prompt:
                engine.check_token(max(prompt), "prompt")
        return found


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a body an error is, and what it is."""

    param: str
    message: str


def parse(kind: type[B], body: Mapping[str, Any], limits: Limits) -> B:
    """A body as its model.

    Sizes come first, and lists are given up at their first wrong item: a megabyte of wrong items would otherwise keep
    the event loop busy for the better part of a minute.

    Raises:
        ApiError: 400, naming the first field that is wrong.
    """
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > limits.max_messages:
        raise ApiError(400, f"{len(messages):,} messages; at most {limits.max_messages} here", param="messages")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        place = _first(error)
        raise ApiError(
            400, f"{place.param}: {place.message}" if place.param else place.message, param=place.param or None
        ) from None


def _token_id(key: str, engine: Capabilities) -> int:
    """The token id in a key of ``logit_bias``.

    Raises:
        ApiError: 400, it is not a token id.
    """
    if not _TOKEN_ID.fullmatch(key):
        raise ApiError(400, f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias")
    engine.check_token(int(key), "logit_bias")
    return int(key)


def _first(error: ValidationError) -> _Place:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # Of the alternatives of a union, the one that came furthest explains most.
    top = details[0]["loc"][:1]
    detail = max((found for found in details if found["loc"][:1] == top), key=lambda found: len(_steps(found["loc"])))
    message = detail["msg"].removeprefix("Value error, ")
    return _Place(_path(_steps(detail["loc"])), message[:1].lower() + message[1:])


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
