"""The SQLite file of `ragalign.cache`: its schema, its rows, and telling damage from other errors."""

from __future__ import annotations

import sqlite3
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path

TABLE = "ragalign_cache"
APPLICATION_ID = 0x52414743  # "RAGC", in the file's header
# Rows are found by a hash of their key. A separate index could contradict the rows once the file is damaged.
SCHEMA = f"CREATE TABLE IF NOT EXISTS {TABLE} (id INTEGER PRIMARY KEY, key BLOB, value BLOB, checksum INTEGER)"
# SQLite's oldest limit on the parameters of one statement is 999.
KEYS_PER_QUERY = 900
WAIT_S = 30.0
# Raised by SQLite for damaged files; UnicodeDecodeError comes from messages that quote damaged text.
FILE_ERRORS = (sqlite3.Error, OSError, ValueError, OverflowError, MemoryError, UnicodeError)
# Errors that do not mean damage: a long-held lock, a read-only file, a full disk.
_PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS,
})  # fmt: skip
_MAGIC = b"SQLite format 3\0"


class ForeignFileError(Exception):
    """The file belongs to something else."""


def check_header(path: Path, *, strict: bool) -> None:
    """Check, as SQLite does not, whether the file can be a database at all.

    Raises:
        sqlite3.DatabaseError: the file is damaged.
        ForeignFileError: the file was never a database.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ForeignFileError("it is not a file")
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        return
    if not head:
        return
    if not head.startswith(_MAGIC):
        # Our own files have zero bytes in their first page; a file without any is text.
        if strict and b"\0" not in head:
            raise ForeignFileError("it is not a database; choose another file")
        raise sqlite3.DatabaseError("file is not a database")
    # SQLite reports an unknown format version as a read-only file.
    if len(head) < 100 or head[18] not in (1, 2) or head[19] not in (1, 2):
        raise sqlite3.DatabaseError("its header is damaged")


def empty_database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute(SCHEMA)
    return connection


def write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead mode, retrying: SQLite does not wait for other connections here."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def insert_rows(connection: sqlite3.Connection, rows: Iterable[tuple[bytes, bytes, int]]) -> None:
    with connection:
        connection.executemany(
            f"INSERT OR REPLACE INTO {TABLE} VALUES (?, ?, ?, ?)",
            ((row_id(key), key, value, checksum) for key, value, checksum in rows),
        )


def salvaged_rows(path: Path) -> Iterator[list[tuple[bytes, bytes, int]]]:
    """The intact rows of a damaged file, read from both ends up to the damage."""
    for order in ("ASC", "DESC"):
        rows: list[tuple[bytes, bytes, int]] = []
        try:
            with closing(sqlite3.connect(path)) as connection:
                cursor = connection.execute(f"SELECT key, value, checksum FROM {TABLE} ORDER BY id {order}")
                for key, value, checksum in cursor:
                    if is_sound(key, value, checksum):
                        rows.append((key, value, checksum))
                    if len(rows) >= KEYS_PER_QUERY:
                        yield rows
                        rows = []
        except FILE_ERRORS:
            yield rows
            continue
        yield rows
        return


def is_sound(key: object, value: object, checksum: object) -> bool:
    return isinstance(key, bytes) and isinstance(value, bytes) and checksum_of(key, value) == checksum


def row_id(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big", signed=True)


def checksum_of(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def is_damage(error: BaseException) -> bool:
    """Whether an error means that the file is damaged, rather than the disk full or the file locked."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _PASSING
    return isinstance(error, UnicodeError | OverflowError | MemoryError)


def reason_of(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
