"""The cache of judge replies, written to disk as they arrive.

Each reply is committed on its own, so a process killed at any moment loses no reply that arrived. A power cut can lose
the last few. Replies are stored as the endpoint sent them, so an improved parser can read them without asking again. A
damaged reply counts as missing, and the judge is asked again; see `ragalign.cache`. Replies cost money, so a file
that cannot be written aborts the run.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ragalign.cache import Cache, CacheError
from ragalign.errors import JudgeError
from ragalign.judging.requests import JudgeReply, JudgeUsage

# Attempts to look up at a time, more than a run usually makes.
_ATTEMPTS_PER_QUERY = 8


def reply_key(judge: str, body: Mapping[str, Any]) -> str:
    """SHA-256 over the judge's name, the messages and the decoding parameters.

    The address is not included: a local server restarted on another port is the same judge.
    """
    content = json.dumps([judge, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class ReplyCache:
    """Replies by key, several per key if a judge was asked again. A context manager.

    Args:
        path: the file, created if missing; None keeps replies in memory.
        read_only: do not create or change the file; a missing file is empty.

    Raises:
        DataError: the file is not a reply cache, or cannot be opened.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._cache = Cache(path, "reply cache", strict=True, read_only=read_only)
        self._cache.__enter__()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; every reply is already in it."""
        self._cache.close()

    def get(self, key: str) -> list[JudgeReply]:
        """All replies to a question, oldest first; empty if there are none."""
        return [reply for _, reply in self._replies(key)]

    def put(self, key: str, reply: JudgeReply) -> None:
        """Store another reply to a question; it is on disk when this returns.

        Raises:
            JudgeError: the file cannot be written.
        """
        try:
            taken = {attempt for attempt, _ in self._replies(key)}
            attempt = next(number for number in range(len(taken) + 1) if number not in taken)
            self._cache.put({_key(key, attempt): _encoded(reply)})
        except CacheError as error:
            raise JudgeError(f"replies cannot be stored: {error}") from None

    def __len__(self) -> int:
        """The number of replies."""
        return len(self._cache)

    def _replies(self, key: str) -> list[tuple[int, JudgeReply]]:
        """Attempt numbers and their replies; damaged ones are left out."""
        found: list[tuple[int, JudgeReply]] = []
        start = 0
        while True:
            keys = {_key(key, attempt): attempt for attempt in range(start, start + _ATTEMPTS_PER_QUERY)}
            rows = self._cache.get(list(keys))
            read = {keys[row_key]: _decoded(value) for row_key, value in rows.items()}
            if None in read.values():
                self._cache.report_damage()
            found += [(attempt, reply) for attempt, reply in sorted(read.items()) if reply is not None]
            start += _ATTEMPTS_PER_QUERY
            if len(rows) < _ATTEMPTS_PER_QUERY:
                return found


def _key(key: str, attempt: int) -> bytes:
    return f"{key}/{attempt}".encode()


def _encoded(reply: JudgeReply) -> bytes:
    usage = reply.usage and {
        "n_prompt_tokens": reply.usage.n_prompt_tokens,
        "n_output_tokens": reply.usage.n_output_tokens,
    }
    stored = {
        "judge": reply.judge, "choice": reply.choice, "usage": usage, "latency_s": reply.latency_s,
        "created": reply.created,
    }  # fmt: skip
    return json.dumps(stored).encode()


def _decoded(value: bytes) -> JudgeReply | None:
    """The reply, or None if the value is not a reply: a row with a valid checksum can still be another program's."""
    try:
        stored = json.loads(value)
        if not isinstance(stored["judge"], str) or not isinstance(stored["choice"], dict):
            return None
        usage = JudgeUsage(**stored["usage"]) if stored["usage"] else None
        numbers = [stored["latency_s"], stored["created"], *(astuple(usage) if usage else (0, 0))]
        if not all(number is None or (isinstance(number, int | float) and math.isfinite(number)) for number in numbers):
            return None
        if usage is not None and None in numbers[2:]:
            return None
        return JudgeReply(stored["judge"], stored["choice"], usage, *numbers[:2])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None
