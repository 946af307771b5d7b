"""The models that a completion server lists, and whether it can answer for the other servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from ragalign.generation._upstream_answers import MAX_EVENT_BYTES, BadAnswerError, parse_object

_START_S = 5.0
_MOST_SHOWN = 3


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as a server lists it.

    Attributes:
        name: its name in requests.
        root: the folder or hub id that it was loaded from.
        context_length: maximum tokens of prompt and completion together; None if the server does not state it.
    """

    name: str
    root: str
    context_length: int | None = None


def parse_models(body: Mapping[str, Any]) -> list[ServedModel]:
    """The models in a response of ``/v1/models``; empty if it does not follow the protocol."""
    cards = body.get("data")
    return [
        ServedModel(card["id"], str(card.get("root") or card["id"]), _length(card.get("max_model_len")))
        for card in (cards if isinstance(cards, list) else [])
        if isinstance(card, dict) and isinstance(card.get("id"), str)
    ]


def read_models(url: str, headers: Mapping[str, str]) -> tuple[int, list[ServedModel]]:
    """The status and the models of a server, before any event loop runs.

    Raises:
        httpx.HTTPError, BadAnswerError: it does not answer, or not with JSON.
    """
    with httpx.stream("GET", f"{url}/models", headers=dict(headers), timeout=_START_S, trust_env=False) as response:
        if response.status_code != 200:
            return response.status_code, []
        content = b""
        for part in response.iter_bytes():
            content += part
            if len(content) > MAX_EVENT_BYTES:
                raise BadAnswerError("lists too many models")
    return 200, parse_models(parse_object(content))


def missing(models: Sequence[ServedModel], name: str) -> str | None:
    """Why a server with these models cannot answer requests for `name`; None if it can, or lists no models."""
    if not models or any(model.name == name for model in models):
        return None
    others = ", ".join(repr(model.name) for model in models[:_MOST_SHOWN])
    more = ", ..." if len(models) > _MOST_SHOWN else ""
    return f"does not serve the model {name!r}, but {others}{more}"


def too_short(models: Sequence[ServedModel], name: str, context_length: int | None) -> str | None:
    """Why a server with these models cannot answer all prompts that are packed for this length; None if it can."""
    lengths = [model.context_length for model in models if model.name == name and model.context_length is not None]
    if context_length is None or not lengths or min(lengths) >= context_length:
        return None
    return f"has a context of only {min(lengths):,} tokens, where prompts have up to {context_length:,}"


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
