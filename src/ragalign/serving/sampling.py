"""The sampling fields of a request, and applying them to a recipe's decoding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field

from ragalign.generation.presets import without_unsupported
from ragalign.serving.body_models import Body, at_most
from ragalign.serving.errors import ApiError
from ragalign.serving.settings import Limits
from ragalign.types import Decoding

_INT64 = 2**63
_MOST_TOKEN_IDS = 2**31  # if the size of the vocabulary is unknown
# Seeds of any sign are folded into this range, with room for the n that are counted up from them.
_SEEDS = 2**62
_SMALLEST_TOP_P = 1e-6
_MOST_STOPS = 16
_MOST_STOP_CHARACTERS = 1_024
_MOST_TOKENS_NAMED = 1_024
_MOST_WARNINGS = 20
# Unsupported fields that would change an answer, with the values that have no effect.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("tools", "functions", "tool_choice", "function_call"), ("none", "auto")),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()),
    **dict.fromkeys(("audio", "prediction", "echo", "suffix", "use_beam_search", "early_stopping"), ()),
    **dict.fromkeys(("allowed_token_ids", "bad_words", "logits_processors", "prompt_embeds"), ()),
    **dict.fromkeys(("continue_final_message", "include_stop_str_in_output"), ()),
    "length_penalty": (1,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
# Fields of OpenAI's protocol that do not affect answers, so that they are ignored without a warning.
_WITHOUT_EFFECT = frozenset(
    {
        *("parallel_tool_calls", "best_of"),
        *("metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    }
)
_REASONS = {
    **dict.fromkeys(("tools", "functions", "tool_choice", "function_call"), "tool calls are not supported"),
    **dict.fromkeys(("response_format", "modalities"), "only text is supported"),
}
_NEUTRAL = Decoding()
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: bool | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The capabilities of an engine.

    Attributes:
        vocabulary_size: the size of the vocabulary; None if unknown.
        unsupported: fields of `Decoding` that the engine does not support.
    """

    vocabulary_size: int | None = None
    unsupported: frozenset[str] = frozenset()

    def check_token(self, token: int, field: str) -> None:
        """Check that the model has a token.

        Raises:
            ApiError: 400, naming it.
        """
        size = _MOST_TOKEN_IDS if self.vocabulary_size is None else self.vocabulary_size
        if not 0 <= token < size:
            shown = str(token) if abs(token) < 10**20 else f"{str(token)[:20]}..."
            raise ApiError(400, f"{field}: token id {shown} is not in the vocabulary (0 to {size - 1:,})", param=field)

    def served(self, default: Decoding) -> tuple[Decoding, list[str]]:
        """A recipe's decoding without unsupported fields, and the names of these fields."""
        return without_unsupported(default, self.unsupported)


class SamplingRequest(Body):
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
    stop_token_ids: Annotated[list[int], Field(fail_fast=True), at_most(_MOST_TOKENS_NAMED)] | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], at_most(_MOST_TOKENS_NAMED)] | None = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with token counts."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check_supported(self) -> None:
        """Reject unsupported fields that would change the answer: tools, formats, beams, continuing an answer.

        Raises:
            ApiError: 400, naming the field.
        """
        extra = self.model_extra or {}
        for name, neutral in _UNSUPPORTED.items():
            if extra.get(name) and extra[name] not in neutral:
                raise ApiError(
                    400, f"{name}: {_REASONS.get(name, 'this is not supported')}", param=name, code="unsupported"
                )
        if extra.get("best_of") not in (None, 1, self.n):
            raise ApiError(400, "best_of is not supported", param="best_of", code="unsupported")

    def unknown_fields(self) -> list[str]:
        """The names of unknown fields, which are ignored."""
        unknown = [name for name in self.model_extra or {} if name not in _WITHOUT_EFFECT and name not in _UNSUPPORTED]
        options = self.stream_options.model_extra or {} if self.stream_options else {}
        return unknown + [f"stream_options.{name}" for name in options if name != "include_obfuscation"]

    def warnings(self, lost: Sequence[str]) -> list[str]:
        """The answer's ``warnings``: ignored fields, and fields of the recipe's decoding that are not applied."""
        known = type(self).model_fields
        unknown = self.unknown_fields()
        found = [f"the recipe's {name} is ignored: not supported by this engine" for name in lost]
        for name in unknown[:_MOST_WARNINGS]:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            found.append(f"unknown field {name[:64]!r} was ignored{hint}")
        if len(unknown) > _MOST_WARNINGS:
            found.append(f"{len(unknown) - _MOST_WARNINGS} more unknown fields were ignored")
        return found

    def decoding(self, default: Decoding, limits: Limits, engine: Capabilities) -> Decoding:
        """The recipe's decoding with the request's changes.

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
                raise ApiError(400, f"{name}: not supported by this engine", param=name, code="unsupported")
        return replace(default, **given, stop=(*default.stop, *self._stops()))

    def _max_tokens(self, default: Decoding, limits: Limits) -> int:
        most = self._most_new_tokens()
        if most is None:
            return min(default.max_tokens, limits.max_new_tokens)
        if most[1] > limits.max_new_tokens:
            raise ApiError(400, f"{most[0]} is {most[1]:,}; at most {limits.max_new_tokens:,} here", param=most[0])
        return most[1]

    def _penalties(self) -> dict[str, float]:
        """Repetition penalties: one in the request replaces the recipe's, of either kind."""
        whole, output = self.repetition_penalty, self.output_repetition_penalty
        if whole is None and output is None:
            return {}
        if (whole or 1) != 1 and (output or 1) != 1:
            raise ApiError(
                400,
                "repetition_penalty and output_repetition_penalty would penalise the output twice; set only one",
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
            raise ApiError(400, "stop strings must not be empty", param="stop")
        return stops

    def _most_new_tokens(self) -> tuple[str, int] | None:
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)


def _token_id(key: str, engine: Capabilities) -> int:
    """The token id in a key of ``logit_bias``.

    Raises:
        ApiError: 400, it is not a token id.
    """
    if not _TOKEN_ID.fullmatch(key):
        raise ApiError(400, f"logit_bias: {key[:40]!r} is not a token id", param="logit_bias")
    engine.check_token(int(key), "logit_bias")
    return int(key)
