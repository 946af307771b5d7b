"""One cache on disk: bytes by key, in an SQLite file, for replies of judges, embeddings and token ids.

Its policy, whatever is kept in it:

- A damaged entry is never returned: every row carries a checksum over its key and value. The first one is reported
  with the file's name; all count as missing.
- A damaged file is moved aside, kept under the name that the report gives, and begun afresh with those of its entries
  that are still sound.
- A file that cannot be written, since the disk is full or read-only, is reported once and left out.
- Any number of threads and processes share a file. A process can be killed at any moment.

The file belongs on a local disk, as SQLite's locks do.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Self

from ragalign._locks import LockedError, locked
from ragalign.errors import DataError

_log = logging.getLogger(__name__)

_TABLE = "ragalign_cache"
_APPLICATION_ID = 0x52414743  # "RAGC", in the file's header
# Rows are found by a hash of their key, so that there is no index beside them that damage could set against them.
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {_TABLE} (id INTEGER PRIMARY KEY, key BLOB, value BLOB, checksum INTEGER)"
# SQLite's oldest limit on the parameters of one statement is 999.
_KEYS_PER_QUERY = 900
_WAIT_S = 30.0
# What SQLite raises at damaged files; messages that quote damaged text cannot be decoded.
_TROUBLE = (sqlite3.Error, OSError, ValueError, OverflowError, MemoryError, UnicodeError)
# Errors that say nothing against the file: it is locked for long, read-only, or the disk is full.
_PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS,
})  # fmt: skip
_MAGIC = b"SQLite format 3\0"
_SIDECARS = ("-wal", "-shm", "-journal")


class CacheError(DataError):
    """A strict cache cannot be opened, read or written."""


class Cache:
    """Bytes by key in one file; no call raises for what is wrong with the file, unless the cache is strict.

    Without `with`, every call opens the file for itself, which is fast enough for batches and safe with forks.

    Args:
        path: made when something is put; None keeps the entries in memory.
        name: what messages call it, such as "embedding cache".
        strict: the entries are worth more than going on: what cannot be written, and files of something else, raise
            `CacheError`. Otherwise files of something else are moved aside, too.
        read_only: neither make nor change the file.
    """

    def __init__(self, path: Path | None, name: str, *, strict: bool = False, read_only: bool = False) -> None:
        self.path = path
        self._name = name
        self._strict = strict
        self._read_only = read_only
        self._lock = threading.RLock()
        self._kept: sqlite3.Connection | None = None
        self._in_memory = path is None
        if path is None:
            self._kept = sqlite3.connect(":memory:", check_same_thread=False)
            self._kept.execute(_SCHEMA)
        self._left_out = False
        self._opened: tuple[int, int] | None = None
        self._reported: set[str] = set()

    def __enter__(self) -> Self:
        """Keep the file open until `close`.

        Raises:
            CacheError: a strict cache cannot be opened.
        """
        if self._kept is None and not (self._read_only and not self._exists()):
            self._attempt(self._keep_open)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; whatever was put is in it."""
        with self._lock:
            kept, self._kept = self._kept, None
            if kept is not None:
                kept.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there.

        Raises:
            CacheError: a strict cache cannot be read.
        """
        found: dict[bytes, bytes] = {}

        def read() -> None:
            if self._kept is None and not self._exists():
                return
            with self._connection(write=False) as connection:
                for start in range(0, len(keys), _KEYS_PER_QUERY):
                    found.update(self._select(connection, keys[start : start + _KEYS_PER_QUERY]))

        self._attempt(read)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Add or replace entries, all or none of them; they survive a kill once this returns.

        Raises:
            CacheError: a strict cache cannot be written.
        """
        rows = [(key, value, _checksum(key, value)) for key, value in entries.items()]

        def write() -> None:
            if self._read_only:
                raise PermissionError(None, "it was opened for reading only")
            with self._connection(write=True) as connection:
                _insert(connection, rows)

        if rows:
            self._attempt(write)

    def __len__(self) -> int:
        """How many entries there are, damaged ones included; 0 where it cannot be read."""
        count = 0

        def read() -> None:
            nonlocal count
            if self._kept is None and not self._exists():
                return
            with self._connection(write=False) as connection:
                count = int(connection.execute(f"SELECT COUNT(*) FROM {_TABLE}").fetchone()[0])

        self._attempt(read)
        return count

    def report_damage(self) -> None:
        """Say once that entries are damaged and count as missing; for values that cannot be read."""
        self._report("rows", f"the {self._name} {self.path} has damaged entries; they count as missing")

    def _attempt(self, work: Callable[[], None]) -> None:
        """Do something with the file; if it is damaged, replace it and try once more."""
        if self._left_out:
            return
        with self._lock:
            try:
                work()
            except _ForeignFileError as error:
                self._give_up(str(error))
            except _TROUBLE as error:
                if not _is_damage(error):
                    self._give_up(_reason(error))
                    return
                try:
                    self._replace(_reason(error))
                    work()
                except (*_TROUBLE, _ForeignFileError) as again:
                    self._give_up(_reason(again))

    def _give_up(self, reason: str) -> None:
        if self._strict:
            raise CacheError(f"the {self._name} {self.path} cannot be used: {reason}") from None
        self._left_out = True
        self._report("left out", f"the {self._name} {self.path} cannot be used, going on without it: {reason}")

    def _report(self, kind: str, message: str) -> None:
        if kind not in self._reported:
            self._reported.add(kind)
            _log.warning("%s", message)

    def _exists(self) -> bool:
        return self.path is not None and self.path.exists()

    def _keep_open(self) -> None:
        self._kept = self._open(write=not self._read_only)

    @contextmanager
    def _connection(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        if self._kept is not None:
            yield self._kept
            return
        if self._in_memory:
            raise ValueError("it is closed")
        with closing(self._open(write=write)) as connection:
            yield connection

    def _open(self, *, write: bool) -> sqlite3.Connection:
        path = self._path
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._opened = _identity(path)
        _look_at(path, strict=self._strict)
        if not write:
            return self._open_for_reading(path)
        connection = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
        try:
            self._refuse_foreign(connection)
            _write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            with connection:
                connection.execute(_SCHEMA)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_for_reading(self, path: Path) -> sqlite3.Connection:
        name = path.absolute().as_uri()
        # Where the folder cannot be written, SQLite can read the file only if told that nobody changes it.
        for options in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{name}?{options}", uri=True, timeout=_WAIT_S, check_same_thread=False)
            try:
                self._refuse_foreign(connection)
                tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if not tables:  # a file that somebody is just beginning
                    connection.close()
                    return _empty()
                return connection
            except sqlite3.OperationalError as error:
                connection.close()
                is_last = options != "mode=ro" or Path(f"{path}-wal").exists()
                if is_last or _is_damage(error):
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError("one of the ways returns or raises")

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        """A sound database of something else is not damage; it is ours to move only in a folder of our own."""
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if names and _TABLE not in names:
            if self._strict and connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
                raise _ForeignFileError("it is a database of something else; name another file")
            raise sqlite3.DatabaseError(f"it has no table {_TABLE}")

    def _select(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        wanted = {_id(key): key for key in keys}
        marks = ",".join("?" * len(wanted))
        rows = connection.execute(f"SELECT id, key, value, checksum FROM {_TABLE} WHERE id IN ({marks})", list(wanted))
        for id_, key, value, checksum in rows:
            if _is_sound(key, value, checksum):
                if key == wanted.get(id_):
                    yield key, value
            else:
                self.report_damage()

    def _replace(self, reason: str) -> None:
        """Move a damaged file aside and begin afresh, with whatever can be read of it."""
        path = self._path
        if self._read_only:
            raise PermissionError(None, reason)
        was_kept, damaged = self._kept is not None, self._opened
        self.close()
        with _alone(path.with_name(f"{path.name}.lock")):
            if damaged is None or _identity(path) != damaged:
                return  # another process has done it
            aside = _free_name(path.with_name(f"{path.name}.damaged"))
            path.rename(aside)
            for ending in _SIDECARS:
                with suppress(FileNotFoundError):
                    Path(f"{path}{ending}").rename(f"{aside}{ending}")
            with closing(self._open(write=True)) as fresh:
                n_saved = 0
                for rows in _salvaged(aside):
                    _insert(fresh, rows)
                    n_saved += len(rows)
        self._report(
            "file",
            f"the {self._name} {path} is damaged ({reason}): it is kept as {aside}, and {n_saved:,} of its entries "
            "could be saved",
        )
        if was_kept:
            self._keep_open()

    @property
    def _path(self) -> Path:
        if self.path is None:
            raise ValueError("it is closed")
        return self.path


class _ForeignFileError(Exception):
    """A file of something else."""


def _look_at(path: Path, *, strict: bool) -> None:
    """Check what SQLite does not: whether the file can be a database at all.

    Raises:
        sqlite3.DatabaseError: it is damaged.
        _ForeignFileError: it was never a database.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _ForeignFileError("it is not a file")
        with path.open("rb") as file:
            head = file.read(4096)
    except FileNotFoundError:
        return
    if not head:
        return
    if not head.startswith(_MAGIC):
        # Our own files are full of zeros from their first page on; what has none is somebody's text.
        if strict and b"\0" not in head:
            raise _ForeignFileError("it is not a database; name another file")
        raise sqlite3.DatabaseError("file is not a database")
    # Of unknown format versions SQLite says that the file is read-only.
    if len(head) < 100 or head[18] not in (1, 2) or head[19] not in (1, 2):
        raise sqlite3.DatabaseError("its header is damaged")


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute(_SCHEMA)
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead mode; for this alone SQLite does not wait until others let go of it."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(0.02)


def _insert(connection: sqlite3.Connection, rows: Iterable[tuple[bytes, bytes, int]]) -> None:
    with connection:
        connection.executemany(
            f"INSERT OR REPLACE INTO {_TABLE} VALUES (?, ?, ?, ?)",
            ((_id(key), key, value, checksum) for key, value, checksum in rows),
        )


def _salvaged(path: Path) -> Iterator[list[tuple[bytes, bytes, int]]]:
    """The sound rows of a damaged file, read from both ends up to what cannot be read."""
    for order in ("ASC", "DESC"):
        rows: list[tuple[bytes, bytes, int]] = []
        try:
            with closing(sqlite3.connect(path)) as connection:
                cursor = connection.execute(f"SELECT key, value, checksum FROM {_TABLE} ORDER BY id {order}")
                for key, value, checksum in cursor:
                    if _is_sound(key, value, checksum):
                        rows.append((key, value, checksum))
                    if len(rows) >= _KEYS_PER_QUERY:
                        yield rows
                        rows = []
        except _TROUBLE:
            yield rows
            continue
        yield rows
        return


def _is_sound(key: object, value: object, checksum: object) -> bool:
    return isinstance(key, bytes) and isinstance(value, bytes) and _checksum(key, value) == checksum


def _id(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big", signed=True)


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def _is_damage(error: BaseException) -> bool:
    """Whether an error speaks against the file, not against the disk or other processes."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _PASSING
    return isinstance(error, UnicodeError | OverflowError | MemoryError)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock file, waiting for others that do."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        lock = locked(path)
        try:
            lock.__enter__()
            break
        except LockedError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
