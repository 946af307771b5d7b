"""Reading responses of completion servers, with checks of their size and form."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import httpx

from ragalign.generation.base import one_line
from ragalign.questions import kind
from ragalign.text import valid_text
from ragalign.types import TokenLogprob

MAX_EVENT_BYTES = 1 << 20
MAX_ANSWER_BYTES = 16 << 20
# No vocabulary has longer tokens than this.
MAX_TOKEN_CHARACTERS = 512
_MAX_ERROR_BYTES = 64 << 10
# vLLM's log-probability of a token with probability 0, since JSON has no infinity.
_LOWEST_LOGPROB = -9999.0
_MOST_TOKENS = 2**31 - 1


class BadAnswerError(ValueError):
    """A server's response does not follow the protocol; the message gives the reason in one line."""


@dataclass(frozen=True, slots=True)
class UpstreamAnswer:
    """A completion, or the next part of one in a stream.

    Attributes:
        text: the text, possibly empty.
        finish_reason: None if the answer is not finished.
        logprobs: log-probabilities of the text's tokens, if requested.
        n_tokens: tokens of the whole answer; None if the server does not report them.
        n_cached_tokens: prompt tokens from the prefix cache; None if the server does not report them.
    """

    text: str = ""
    finish_reason: str | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    n_tokens: int | None = None
    n_cached_tokens: int | None = None


def parse_answer(body: dict[str, Any]) -> UpstreamAnswer:
    """Parse the answer in a body or an event; without a choice, only the counts are set.

    Raises:
        BadAnswerError: it does not follow the protocol, or a number or count is invalid.
    """
    choices = _typed(body.get("choices"), list, "choices") or []
    if len(choices) > 1:
        raise BadAnswerError(f"sent {len(choices)} choices instead of one")
    usage = _typed(body.get("usage"), dict, "usage") or {}
    details = _typed(usage.get("prompt_tokens_details"), dict, "usage.prompt_tokens_details") or {}
    if None in choices:
        raise BadAnswerError("sent null as choices[0]")
    choice = _typed(choices[0], dict, "choices[0]") if choices else {}
    return UpstreamAnswer(
        text=_typed(choice.get("text"), str, "choices[0].text") or "",
        finish_reason=_typed(choice.get("finish_reason"), str, "choices[0].finish_reason"),
        logprobs=_logprobs(choice),
        n_tokens=token_count(usage.get("completion_tokens"), "usage.completion_tokens"),
        n_cached_tokens=token_count(details.get("cached_tokens"), "usage.prompt_tokens_details.cached_tokens"),
    )


def cut_answer(answer: UpstreamAnswer, max_tokens: int) -> UpstreamAnswer:
    """Cut a whole answer that has more than `max_tokens` tokens, from a server that ignores the limit.

    Log-probabilities show where its tokens end. Without them, the text is cut at the same share of its characters as of
    the reported tokens; without a count, only at `MAX_TOKEN_CHARACTERS` per token.
    """
    n_tokens = max(answer.n_tokens or 0, len(answer.logprobs))
    n_characters = max_tokens * MAX_TOKEN_CHARACTERS
    if n_tokens > max_tokens:
        kept = answer.logprobs[:max_tokens]
        share = len(answer.text) * max_tokens // n_tokens
        n_characters = min(n_characters, sum(len(token.token) for token in kept) if kept else share)
    elif len(answer.text) <= n_characters:
        return answer
    return replace(
        answer,
        text=answer.text[:n_characters],
        finish_reason="length",
        logprobs=answer.logprobs[:max_tokens],
        n_tokens=max_tokens,
    )


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        BadAnswerError: it is not a JSON object.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise BadAnswerError("sent JSON that is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadAnswerError(f"sent invalid JSON: {one_line(error)}") from None
    except ValueError:  # Python limits digits to sys.get_int_max_str_digits()
        raise BadAnswerError("sent JSON with a number that has too many digits") from None
    if not isinstance(value, dict):
        raise BadAnswerError(f"sent {kind(value)} instead of a JSON object")
    return value


async def read_events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Read the JSON objects of server-sent events, up to ``[DONE]``.

    Read by hand and not with httpx-sse: an event has a limit here, and only line feeds end a line, since texts can
    contain other Unicode line breaks.

    Raises:
        BadAnswerError: an event is not a JSON object, or is larger than `MAX_EVENT_BYTES`.
    """
    data: list[bytes] = []
    async for line in _lines(response):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            if sum(map(len, data)) > MAX_EVENT_BYTES:
                raise _too_long()
        if line or not data:
            continue
        event, data = b"\n".join(data).strip(), []
        if event == b"[DONE]":
            return
        yield parse_object(event)
    if data and (event := b"\n".join(data).strip()) != b"[DONE]":
        yield parse_object(event)


async def read_answer(response: httpx.Response) -> dict[str, Any]:
    """Read the JSON object in a response's body.

    Raises:
        BadAnswerError: it is not a JSON object, or is larger than `MAX_ANSWER_BYTES`.
    """
    body = await _read(response, MAX_ANSWER_BYTES)
    if len(body) > MAX_ANSWER_BYTES:
        raise BadAnswerError(f"sent an answer of more than {MAX_ANSWER_BYTES:,} bytes")
    return parse_object(body)


async def read_error(response: httpx.Response) -> str:
    """Read a server's error message, or else the name of the status."""
    try:
        return error_message(parse_object(await _read(response, _MAX_ERROR_BYTES)))
    except BadAnswerError:
        return response.reason_phrase


def error_message(body: Any) -> str:
    """A server's error message if it follows the protocol, or else the start of its response. One line."""
    found = body
    if isinstance(body, dict):
        found = body.get("error") or body.get("message") or body.get("detail") or body
        if isinstance(found, dict):
            found = found.get("message") or found
    return one_line(ValueError(str(found)))


async def _read(response: httpx.Response, most: int) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_bytes():
        parts.append(part)
        size += len(part)
        if size > most:
            break
    return b"".join(parts)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    parts: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes():
        start = 0
        while True:
            end = chunk.find(b"\n", start)
            part = chunk[start : end if end >= 0 else None]
            parts.append(part)
            size += len(part)
            if size > MAX_EVENT_BYTES:
                raise _too_long()
            if end < 0:
                break
            yield b"".join(parts).removesuffix(b"\r")
            parts, size, start = [], 0, end + 1
    if size:
        yield b"".join(parts)


def _too_long() -> BadAnswerError:
    return BadAnswerError(f"sent an event of more than {MAX_EVENT_BYTES:,} bytes")


def _typed(value: Any, expected: type[Any], name: str) -> Any:
    if value is None or isinstance(value, expected):
        return value
    raise BadAnswerError(f"sent {kind(value)} as {name}")


def token_count(value: Any, name: str) -> int | None:
    """Check a count of tokens that a server reports; None stays None.

    Raises:
        BadAnswerError: it is not a count.
    """
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_TOKENS:
        raise BadAnswerError(f"sent {one_line(ValueError(repr(value)), 40)} as {name}, which is not a count of tokens")
    return value


def _logprobs(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    given = _typed(choice.get("logprobs"), dict, "logprobs") or {}
    tokens = _typed(given.get("tokens"), list, "logprobs.tokens") or []
    values = _typed(given.get("token_logprobs"), list, "logprobs.token_logprobs") or []
    tops = _typed(given.get("top_logprobs"), list, "logprobs.top_logprobs") or [None] * len(tokens)
    if not len(tokens) == len(values) == len(tops):
        raise BadAnswerError("sent logprobs whose lists differ in length")
    return tuple(
        TokenLogprob(_token(token), _logprob(value), _top(top))
        for token, value, top in zip(tokens, values, tops, strict=True)
    )


def _token(value: Any) -> str:
    return valid_text(_typed(value, str, "a token of logprobs") or "")


def _top(value: Any) -> tuple[tuple[str, float], ...]:
    top = _typed(value, dict, "logprobs.top_logprobs[]") or {}
    return tuple(
        sorted(((valid_text(token), _logprob(number)) for token, number in top.items()), key=lambda pair: -pair[1])
    )


def _logprob(value: Any) -> float:
    if value is None:  # the first token of a prompt has none
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BadAnswerError(f"sent {kind(value)} as a log-probability")
    if (isinstance(value, float) and math.isnan(value)) or value > 1:
        raise BadAnswerError(f"sent {str(value)[:20]} as a log-probability")
    return max(float(value), _LOWEST_LOGPROB) if value > -1e300 else _LOWEST_LOGPROB
