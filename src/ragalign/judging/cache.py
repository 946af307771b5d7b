"""Every reply of every judge, on disk as soon as it arrives.

An SQLite file in write-ahead mode: each reply is committed on its own, so a process killed at any moment loses
none that had arrived. A power cut may lose the last few. Replies are stored as the endpoint sent them, so a better
parser reads them again without asking. The file belongs on a local disk, as SQLite's locks do.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ragalign.errors import DataError, JudgeError
from ragalign.judging.base import JudgeReply, Usage

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    key TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    judge TEXT NOT NULL,
    reply TEXT NOT NULL,
    PRIMARY KEY (key, attempt)
) WITHOUT ROWID
"""
_BUSY_TIMEOUT_S = 30.0


def reply_key(judge: str, body: Mapping[str, Any]) -> str:
    """SHA-256 over the judge's name, the messages and the decoding parameters.

    The address is not part of it: a local server that comes back on another port is the same judge.
    """
    content = json.dumps([judge, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class ReplyCache:
    """Replies by key, several per key where a judge was asked again; a context manager.

    Args:
        path: the file, made if it is missing; None keeps replies in memory only.
        read_only: neither make nor change the file; a missing one is empty.

    Raises:
        DataError: the file is no reply cache, or one of another version.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._path = path
        in_memory = path is None or (read_only and not path.exists())
        if not in_memory and not read_only:
            Path(str(path)).parent.mkdir(parents=True, exist_ok=True)
        with self._explained():
            self._connection = sqlite3.connect(
                ":memory:" if in_memory else str(path), timeout=_BUSY_TIMEOUT_S, isolation_level=None
            )
        try:
            with self._explained():
                self._prepare(writable=in_memory or not read_only)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; every reply is already in it."""
        self._connection.close()

    def get(self, key: str) -> list[JudgeReply]:
        """All replies to a question, oldest first; empty if it was never answered."""
        with self._explained():
            rows = self._connection.execute(
                "SELECT judge, reply FROM replies WHERE key = ? ORDER BY attempt", (key,)
            ).fetchall()
        return [_decoded(judge, reply) for judge, reply in rows]

    def put(self, key: str, attempt: int, reply: JudgeReply) -> None:
        """Store the reply to attempt `attempt` (from 0); it is safe once this returns.

        Raises:
            JudgeError: the file cannot be written.
        """
        row = (key, attempt, reply.judge, _encoded(reply))
        try:
            self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise JudgeError(f"reply cache {self._path} cannot be written: {error}") from None

    def __len__(self) -> int:
        """How many replies there are."""
        with self._explained():
            return int(self._connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0])

    def _prepare(self, *, writable: bool) -> None:
        execute = self._connection.execute
        if not writable:
            execute("PRAGMA query_only = ON")
            self._check_version()
            return
        # Looking and making are one transaction, as another run may be opening the same new file.
        execute("BEGIN IMMEDIATE")
        try:
            self._check_version()
            execute(_SCHEMA)
            execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            execute("ROLLBACK")
            raise
        execute("COMMIT")
        self._write_ahead()
        execute("PRAGMA synchronous = NORMAL")

    def _check_version(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        n_tables = self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if version != _VERSION and (version or n_tables):
            raise DataError(f"{self._path} is no reply cache of this version; name another file or move it away")

    def _write_ahead(self) -> None:
        """Switch the file to write-ahead mode; for this alone SQLite does not wait until others let go of it."""
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DataError(f"reply cache {self._path} cannot be opened: {error}") from None


def _encoded(reply: JudgeReply) -> str:
    usage = reply.usage and {
        "n_prompt_tokens": reply.usage.n_prompt_tokens,
        "n_output_tokens": reply.usage.n_output_tokens,
    }
    return json.dumps({
        "choice": reply.choice, "usage": usage, "latency_s": reply.latency_s, "created": reply.created
    })  # fmt: skip


def _decoded(judge: str, text: str) -> JudgeReply:
    stored = json.loads(text)
    usage = Usage(**stored["usage"]) if stored["usage"] else None
    return JudgeReply(judge, stored["choice"], usage, stored["latency_s"], stored["created"])
