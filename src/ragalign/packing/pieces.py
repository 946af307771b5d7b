"""Rendered and tokenised demonstrations, each made once: in memory, and on disk beside the index."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ragalign.types import Demonstration

Ids = NDArray[np.int32]

# Tokenised demonstrations kept in memory; at 300 tokens each some 700 MB at worst.
_MAX_IN_MEMORY = 65_536
# Texts tokenised at a time: what a tokenizer returns takes some hundred bytes per token until its ids are taken out.
_TOGETHER = 1024
# SQLite's limit on the parameters of one statement is 999 in old builds.
_MAX_PARAMETERS = 900
# What reading a damaged file raises; messages that quote damaged text cannot be decoded.
_DAMAGED = (sqlite3.Error, ValueError, OverflowError, MemoryError)
# Errors that say nothing against the file: it is locked for long, read-only, or the disk is full.
_PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM,
})  # fmt: skip


class Piece(NamedTuple):
    """A demonstration's text in the prompt and its ids: behind another part, and at the start of the prompt.

    The lengths are kept beside the arrays: asking an array for its own takes longer than all else in a choice.
    """

    text: str
    source_id: str | None
    ids: Ids
    start_ids: Ids
    n_tokens: int
    most_tokens: int


class Pieces:
    """Makes pieces and remembers them.

    Args:
        render: a demonstration's text.
        encode: (ids, ids at the start of a prompt) for each of several texts.
        store: where ids are kept between runs.
    """

    def __init__(
        self,
        render: Callable[[Demonstration], str],
        encode: Callable[[Sequence[str]], list[tuple[Ids, Ids]]],
        store: TokenStore | None,
    ) -> None:
        self._render = render
        self._encode = encode
        self._store = store
        self._known: dict[str, Piece] = {}

    def load(self, ids: Collection[str], get: Callable[[str], Demonstration]) -> Mapping[str, Piece]:
        """The pieces of the demonstrations `ids`, among others; `get` is called for those not known yet."""
        # Threads share a packer: each keeps the dictionary that it began with, to which pieces are only added.
        known = self._known
        missing = [id_ for id_ in ids if id_ not in known]
        if missing:
            if len(known) + len(missing) > _MAX_IN_MEMORY:
                known = {id_: known[id_] for id_ in ids if id_ in known}
            known.update(self._make([get(id_) for id_ in missing]))
            self._known = known
        return known

    def _make(self, demonstrations: list[Demonstration]) -> dict[str, Piece]:
        texts = [self._render(demonstration) for demonstration in demonstrations]
        found = self._store.get(texts) if self._store else {}
        new = [text for text in texts if text not in found]
        for start in range(0, len(new), _TOGETHER):
            some = new[start : start + _TOGETHER]
            made = dict(zip(some, self._encode(some), strict=True))
            if self._store:
                self._store.put(made)
            found |= made
        pieces = {}
        for demonstration, text in zip(demonstrations, texts, strict=True):
            ids, start_ids = found[text]
            lengths = len(ids), max(len(ids), len(start_ids))
            pieces[demonstration.id] = Piece(text, demonstration.source_id, ids, start_ids, *lengths)
        return pieces


class TokenStore:
    """Ids of texts on disk: one SQLite file per template and tokenizer.

    It is a cache: whatever is wrong with the file, texts count as missing and are tokenised again, and a file
    that is no database any more is replaced. Every row carries a CRC-32, so that a damaged one is not used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()

    def get(self, texts: Iterable[str]) -> dict[str, tuple[Ids, Ids]]:
        """What is known of `texts`."""
        keys = {_key(text): text for text in texts}
        wanted = list(keys)
        found: dict[str, tuple[Ids, Ids]] = {}
        if not self._path.is_file():
            return found
        try:
            with self._lock, closing(sqlite3.connect(self._path)) as database:
                for start in range(0, len(wanted), _MAX_PARAMETERS):
                    part = wanted[start : start + _MAX_PARAMETERS]
                    marks = ",".join("?" * len(part))
                    rows = database.execute(f"SELECT key, n, ids, crc FROM tokens WHERE key IN ({marks})", part)
                    for key, n, blob, crc in rows:
                        if isinstance(n, int) and isinstance(blob, bytes) and _checksum(key, n, blob) == crc:
                            both = np.frombuffer(blob, dtype="<i4").astype(np.int32)
                            found[keys[key]] = (both[:n], both[n:])
        except _DAMAGED:
            pass  # what was read before is sound, row by row
        return found

    def put(self, entries: Mapping[str, tuple[Ids, Ids]]) -> None:
        """Add texts; where the disk does not let us, they are known in memory only."""
        rows = []
        for text, (ids, start_ids) in entries.items():
            key, blob = _key(text), np.concatenate((ids, start_ids)).astype("<i4").tobytes()
            rows.append((key, len(ids), blob, _checksum(key, len(ids), blob)))
        with self._lock:
            try:
                self._write(rows)
            except _DAMAGED as error:
                code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
                if code & 0xFF not in _PASSING:
                    self._replace(rows)
            except OSError:
                return

    def _write(self, rows: list[tuple[bytes, int, bytes, int]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path)) as database, database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS tokens (key BLOB PRIMARY KEY, n INTEGER, ids BLOB, crc INTEGER)"
            )
            database.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)", rows)

    def _replace(self, rows: list[tuple[bytes, int, bytes, int]]) -> None:
        """Begin anew: the file is damaged."""
        with suppress(*_DAMAGED, OSError):
            self._path.unlink(missing_ok=True)
            self._write(rows)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:16]


def _checksum(key: bytes, n: int, blob: bytes) -> int:
    return zlib.crc32(b"%d:%b%b" % (n, key, blob))
