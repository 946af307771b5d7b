"""The parameters that one server takes for one model, learnt from what it refuses.

Servers disagree about two parameters. OpenAI's reasoning models want ``max_completion_tokens`` where others want
``max_tokens``, and they take no ``temperature`` but their own. Both answer with HTTP 400 and say so in words or in the
fields ``param`` and ``code`` of the error (https://platform.openai.com/docs/guides/error-codes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

TokenLimit: TypeAlias = Literal["auto", "max_tokens", "max_completion_tokens"]
"""What the limit on new tokens is called in requests; "auto" begins with ``max_tokens`` and learns."""

LIMITS = ("max_tokens", "max_completion_tokens")
# Only what shapes no reply: without `logprobs` or `messages` there would be nothing to read a verdict from.
_DISPENSABLE = ("temperature", "top_p")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|not permitted|not allowed|only the default|"
    r"deprecated|extra inputs|extra forbidden",
    re.IGNORECASE,
)


class Dialect:
    """What to send instead of the usual parameters; shared by all requests to one server for one model.

    Args:
        limit: the name of the limit on new tokens; "auto" learns it.
    """

    def __init__(self, limit: TokenLimit = "auto") -> None:
        self._learns_limit = limit == "auto"
        self._limit = LIMITS[0] if limit == "auto" else limit
        self._refused = {self._limit}
        self._left_out: set[str] = set()

    def translate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request as this server takes it."""
        kept = {name: value for name, value in body.items() if name not in self._left_out}
        return {self._limit if name in LIMITS else name: value for name, value in kept.items()}

    def learn(self, sent: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
        """Take in why a request was refused.

        Args:
            sent: the request's body.
            error: ``message``, ``code`` and ``param`` of the error, as far as they are known.

        Returns:
            Whether the request would now be sent differently. It is, too, where another one in flight has taught the
            same before.
        """
        text = f"{error.get('message') or ''} {error.get('code') or ''} {error.get('param') or ''}"
        if _UNSUPPORTED.search(text.replace("_", " ")) or "instead" in text:
            self._learn(sent, error, text)
        return self.translate(sent) != dict(sent)

    @property
    def notes(self) -> tuple[str, ...]:
        """What differs from what the protocol asks for, for people."""
        named = (f"takes {self._limit} instead of {LIMITS[0]}",) if self._limit != LIMITS[0] else ()
        return named + tuple(
            f"refuses the protocol's {name}, so the server's own applied" for name in sorted(self._left_out)
        )

    def _learn(self, sent: Mapping[str, Any], error: Mapping[str, Any], text: str) -> None:
        about = error.get("param")
        for name in LIMITS:
            if name in sent and (about == name or _names(text, name)):
                other = LIMITS[1 - LIMITS.index(name)]
                is_sure = _names(text, other) or about == name or "extra" in text.lower() or _is_unknown(text, name)
                # Where both are refused, the error goes into the verdicts; there is no third request.
                if self._learns_limit and is_sure and other not in self._refused:
                    self._limit = other
                    self._refused.add(other)
                return
        self._left_out |= {
            name for name in _DISPENSABLE if name in sent and (about == name or (about is None and _names(text, name)))
        }


def _is_unknown(text: str, name: str) -> bool:
    """Whether a text says that a server does not know a parameter, and not only that it refuses its value."""
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
    """Whether a text names a parameter, and not only one whose name contains it."""
    return re.search(rf"(?<![A-Za-z_]){name}(?![A-Za-z_])", text) is not None
