"""Responses in OpenAI's format, whole and in chunks."""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ragalign.serving.answering import Part
from ragalign.types import TokenLogprob

DONE = b"data: [DONE]\n\n"
_LOWEST_LOGPROB = -9999.0


@dataclass(slots=True)
class Usage:
    """The token counts of a request."""

    n_prompt: int = 0
    n_output: int = 0
    n_cached: int | None = None
    n_reused: int = 0

    def add(self, part: Part) -> None:
        """Count the last part of an answer."""
        self.n_output += part.n_tokens
        if part.index == 0 and part.n_cached_tokens is not None:
            self.n_cached = (self.n_cached or 0) + part.n_cached_tokens
        if part.index == 0:
            self.n_reused += part.n_reused_tokens

    def as_json(self) -> dict[str, Any]:
        """The shape of ``usage``; cached tokens are null where the engine does not report them."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_output,
            "total_tokens": self.n_prompt + self.n_output,
            "prompt_tokens_details": None if self.n_cached is None else {"cached_tokens": self.n_cached},
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """The fields that all chunks of an answer share."""

    model: str
    kind: str
    prefix: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", f"{self.prefix}-{secrets.token_hex(12)}")

    def wrap(self, kind: str, choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """A body of this answer."""
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "choices": list(choices), **more}

    def chunk(self, choices: Sequence[Mapping[str, Any]], **more: Any) -> bytes:
        """A server-sent event of this answer."""
        return event(self.wrap(self.kind, choices, **more))


def encode(value: Any) -> bytes:
    """JSON in UTF-8, valid whatever the engine wrote."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def chat_logprobs(tokens: Sequence[TokenLogprob], n_top: int) -> dict[str, Any]:
    """The shape of a chat choice's ``logprobs``, with the `n_top` most likely tokens at each place."""
    content = []
    for drawn in tokens:
        # Engines report the sampled token in addition, if it is not one of these.
        top = [_chat_logprob(token, value) for token, value in drawn.top[:n_top]]
        content.append({**_chat_logprob(drawn.token, drawn.logprob), "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The shape of a completion choice's ``logprobs``; `offset` characters came before."""
    offsets = []
    for drawn in tokens:
        offsets.append(offset)
        offset += len(drawn.token)
    return {
        "tokens": [drawn.token for drawn in tokens],
        "token_logprobs": [_finite(drawn.logprob) for drawn in tokens],
        "top_logprobs": [{token: _finite(value) for token, value in drawn.top} for drawn in tokens],
        "text_offset": offsets,
    }


def _chat_logprob(token: str, value: float) -> dict[str, Any]:
    return {"token": token, "logprob": _finite(value), "bytes": _bytes(token)}


def _finite(logprob: float) -> float:
    """A log-probability as JSON can hold it; vLLM, too, writes -9999 for a probability of 0."""
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB


def _bytes(token: str) -> list[int] | None:
    """A token's bytes; None if the token is part of a character."""
    return None if "\ufffd" in token else list(token.encode("utf-8", "surrogatepass"))
