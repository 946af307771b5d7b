"""The parameters that a server accepts for a model, learnt from its errors.

Servers differ in two parameters. OpenAI's reasoning models require ``max_completion_tokens`` where others require
``max_tokens``, and they accept only their default ``temperature``. Both reply with HTTP 400 and name the parameter in
the message or in the fields ``param`` and ``code`` (https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

TokenLimit: TypeAlias = Literal["auto", "max_tokens", "max_completion_tokens"]
"""The name of the token limit in requests; "auto" starts with ``max_tokens`` and adapts."""

LIMITS = ("max_tokens", "max_completion_tokens")
# Only parameters that a verdict can do without; it could not be read without `logprobs` or `messages`.
_DISPENSABLE = ("temperature", "top_p")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|only the default|"
    r"deprecated|extra inputs|extra forbidden",
    re.IGNORECASE,
)


class Dialect:
    """Translates request parameters; shared by all requests to one server for one model.

    Args:
        limit: the name of the token limit; "auto" learns it.
    """

    def __init__(self, limit: TokenLimit = "auto") -> None:
        self._learns_limit = limit == "auto"
        self._limit = LIMITS[0] if limit == "auto" else limit
        self._refused = {self._limit}
        self._left_out: set[str] = set()

    def translate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request with the parameters that this server accepts."""
        kept = {name: value for name, value in body.items() if name not in self._left_out}
        return {self._limit if name in LIMITS else name: value for name, value in kept.items()}

    def learn(self, sent: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
        """Learn from the error of a rejected request.

        Args:
            sent: the request's body.
            error: ``message``, ``code`` and ``param`` of the error, as far as known.

        Returns:
            Whether the request would now be sent differently, which is also the case if another request has taught
            the same in the meantime.
        """
        text = f"{error.get('message') or ''} {error.get('code') or ''} {error.get('param') or ''}"
        if _UNSUPPORTED.search(text.replace("_", " ")) or "instead" in text:
            self._learn(sent, error, text)
        return self.translate(sent) != dict(sent)

    @property
    def notes(self) -> tuple[str, ...]:
        """How requests differ from the protocol, as text."""
        named = (f"takes {self._limit} instead of {LIMITS[0]}",) if self._limit != LIMITS[0] else ()
        return named + tuple(
            f"rejects the protocol's {name}, so the server's default applied" for name in sorted(self._left_out)
        )

    def _learn(self, sent: Mapping[str, Any], error: Mapping[str, Any], text: str) -> None:
        about = error.get("param")
        for name in LIMITS:
            if name in sent and (about == name or _names(text, name)):
                other = LIMITS[1 - LIMITS.index(name)]
                is_sure = _names(text, other) or about == name or "extra" in text.lower() or _is_unknown(text, name)
                # If both are rejected, the error becomes the verdict's reason; there is no third request.
                if self._learns_limit and is_sure and other not in self._refused:
                    self._limit = other
                    self._refused.add(other)
                return
        self._left_out |= {
            name for name in _DISPENSABLE if name in sent and (about == name or (about is None and _names(text, name)))
        }


def _is_unknown(text: str, name: str) -> bool:
    """Whether a text says that the server does not know a parameter, rather than that it rejects its value."""
    quoted = rf"[\"'`]?{name}(?![A-Za-z_])[\"'`]?"
    kinds = r"(?:parameter|argument|field|property|key|option|input)s?"
    return any(
        re.search(pattern, text, re.IGNORECASE) is not None
        for pattern in (
            rf"(?:unsupported|unknown|unrecogni[sz]ed|unexpected)\s+(?:\w+\s+)?{kinds}\b[^.;]{{0,30}}?{quoted}",
            rf"{quoted}\s+is\s+(?:not\s+(?:supported|allowed|permitted|recogni[sz]ed)|unsupported|unknown)(?!\s+\w)",
        )
    )


def _names(text: str, name: str) -> bool:
    """Whether a text names this parameter, rather than one whose name contains it."""
    return re.search(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", text) is not None
