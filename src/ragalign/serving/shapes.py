"""Answers in the shapes of OpenAI's API, whole and in chunks."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ragalign.serving.answering import Part
from ragalign.types import TokenLogprob

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Usage:
    """Token counts of one request."""

    n_prompt: int = 0
    n_output: int = 0
    n_cached: int | None = None

    def add(self, part: Part) -> None:
        """Count what the last part of an answer tells."""
        self.n_output += part.n_tokens
        if part.index == 0 and part.n_cached_tokens is not None:
            self.n_cached = (self.n_cached or 0) + part.n_cached_tokens

    def as_json(self) -> dict[str, Any]:
        """The shape of ``usage``; cached tokens are null where the engine does not tell them."""
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": self.n_output,
            "total_tokens": self.n_prompt + self.n_output,
            "prompt_tokens_details": None if self.n_cached is None else {"cached_tokens": self.n_cached},
        }


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of one answer have in common."""

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
    """JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def chat_logprobs(tokens: Sequence[TokenLogprob], n_top: int) -> dict[str, Any]:
    """The shape of a chat choice's ``logprobs``, with the `n_top` most likely tokens at each place."""
    content = []
    for one in tokens:
        # Engines report the drawn token beside those, if it is none of them.
        top = [{"token": token, "logprob": value, "bytes": _bytes(token)} for token, value in one.top[:n_top]]
        own = {"token": one.token, "logprob": one.logprob, "bytes": _bytes(one.token)}
        content.append({**own, "top_logprobs": top})
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """The shape of a completion choice's ``logprobs``; `offset` characters came before."""
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.token)
    return {
        "tokens": [one.token for one in tokens],
        "token_logprobs": [one.logprob for one in tokens],
        "top_logprobs": [dict(one.top) for one in tokens],
        "text_offset": offsets,
    }


def _bytes(token: str) -> list[int] | None:
    """A token's bytes; unknown where it is a part of a character."""
    return None if "\ufffd" in token else list(token.encode("utf-8", "surrogatepass"))
