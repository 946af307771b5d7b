"""The embedding cache: one SQLite file per encoder fingerprint, vectors by content hash."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

# SQLite's oldest default limit for the number of parameters of one statement is 999.
_KEYS_PER_QUERY = 500
_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL)"
_WAIT_FOR_OTHER_WRITERS_S = 30.0
# Of a damaged file SQLite's messages need not be text.
_TROUBLE = (sqlite3.Error, OSError, UnicodeDecodeError)


def default_cache_folder() -> Path:
    """``$RAGALIGN_CACHE/embeddings``, else ``ragalign/embeddings`` in the user's cache folder."""
    if own := os.environ.get("RAGALIGN_CACHE"):
        return Path(own) / "embeddings"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ragalign" / "embeddings"


class EmbeddingCache:
    """Vectors of one encoder on disk.

    SQLite's write-ahead log makes it safe to kill a writer and to read while another process writes. A cache
    that cannot be used costs time, not results: the trouble is logged once and everything is encoded.
    """

    def __init__(self, path: Path, dimension: int) -> None:
        self._path = path
        self._n_bytes = 4 * dimension
        self._usable = True

    def read(self, prompt: str, texts: Sequence[str], vectors: NDArray[np.float32]) -> list[int]:
        """Fill rows of ``vectors`` ``[n, d]`` with what is cached; returns the positions that are missing."""
        keys = [_key(prompt, text) for text in texts]
        found: dict[bytes, bytes] = {}
        try:
            with closing(self._connect()) as connection:
                for start in range(0, len(keys), _KEYS_PER_QUERY):
                    found.update(self._select(connection, keys[start : start + _KEYS_PER_QUERY]))
        except _TROUBLE as error:
            self._give_up(error)
        for position, key in enumerate(keys):
            if key in found:
                vectors[position] = np.frombuffer(found[key], dtype="<f4")
        return [position for position, key in enumerate(keys) if key not in found]

    def write(self, prompt: str, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add ``vectors`` ``[n, d]`` of ``texts``, all or none of them."""
        if not self._usable:
            return
        blobs = [row.tobytes() for row in vectors.astype("<f4", copy=False)]
        keys = [_key(prompt, text) for text in texts]
        rows = [(key, blob, _checksum(key, blob)) for key, blob in zip(keys, blobs, strict=True)]
        try:
            with closing(self._connect()) as connection, connection:
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
        except _TROUBLE as error:
            self._give_up(error)

    def _connect(self) -> sqlite3.Connection:
        """A connection for one call: no handle outlives it, so threads and forks need no care."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self._path, timeout=_WAIT_FOR_OTHER_WRITERS_S)
        try:
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_TABLE)
        except _TROUBLE:
            connection.close()
            raise
        return connection

    def _select(self, connection: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        marks = ",".join("?" * len(keys))
        rows = connection.execute(f"SELECT key, vector, checksum FROM vectors WHERE key IN ({marks})", keys)
        for key, vector, checksum in rows:
            # A vector that the disk has changed, or that stands under another's key, is as good as missing.
            if isinstance(vector, bytes) and len(vector) == self._n_bytes and _checksum(key, vector) == checksum:
                yield key, vector

    def _give_up(self, error: Exception) -> None:
        self._usable = False
        _log.warning("the embedding cache %s cannot be used, encoding without it: %s", self._path, error)


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead mode; for this alone SQLite does not wait until others let go of it."""
    deadline = time.monotonic() + _WAIT_FOR_OTHER_WRITERS_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def _checksum(key: bytes, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(key))


def _key(prompt: str, text: str) -> bytes:
    """Hash of what the model sees; the prompt's length goes in, since pooling may leave the prompt out."""
    return hashlib.sha256(f"{len(prompt)}:{prompt}{text}".encode("utf-8", "surrogatepass")).digest()
