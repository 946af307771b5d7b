"""A cache on disk: bytes by key in an SQLite file, for judge replies, embeddings and token ids.

The policy is the same for all values:

- A damaged entry is never returned: every row has a checksum of its key and value. Damaged entries count as missing;
  the first is reported with the file's name.
- A damaged file is renamed, and a new one starts with the entries that can still be read. The report gives the new
  name.
- A file that cannot be written (full or read-only disk) is reported once and not used any more.
- Threads and processes can share a file, and a process can be killed at any time.

Keep the file on a local disk: SQLite's locks do not work on most network file systems.
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
# Rows are found by a hash of their key. A separate index could contradict the rows once the file is damaged.
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {_TABLE} (id INTEGER PRIMARY KEY, key BLOB, value BLOB, checksum INTEGER)"
# SQLite's oldest limit on the parameters of one statement is 999.
_KEYS_PER_QUERY = 900
_WAIT_S = 30.0
# Raised by SQLite for damaged files; UnicodeDecodeError comes from messages that quote damaged text.
_TROUBLE = (sqlite3.Error, OSError, ValueError, OverflowError, MemoryError, UnicodeError)
# Errors that do not mean damage: a long-held lock, a read-only file, a full disk.
_PASSING = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS,
})  # fmt: skip
_MAGIC = b"SQLite format 3\0"
_SIDECARS = ("-wal", "-shm", "-journal")


class CacheError(DataError):
    """Raised when a strict cache cannot be opened, read or written."""


class Cache:
    """Bytes by key in one file. Problems with the file are warnings, or errors if the cache is strict.

    Outside a `with` block, every call opens the file itself, which is fast enough for batches and safe with forks.

    Args:
        path: the file, created by the first `put`; None keeps the entries in memory.
        name: its name in messages, such as "embedding cache".
        strict: raise `CacheError` if the file cannot be written or belongs to something else. Otherwise such a file
            is renamed, like a damaged one.
        read_only: neither create nor change the file.
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
        """Close the file."""
        with self._lock:
            kept, self._kept = self._kept, None
            if kept is not None:
                kept.close()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of the keys that are present.

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
        """Add or replace entries, all or none. Once this returns they survive a kill.

        Raises:
            CacheError: a strict cache cannot be written.
        """
        rows = [(key, value, _checksum(key, value)) for key, value in entries.items()]

        def write() -> None:
            if self._read_only:
                raise PermissionError(None, "the cache was opened read-only")
            with self._connection(write=True) as connection:
                _insert(connection, rows)

        if rows:
            self._attempt(write)

    def __len__(self) -> int:
        """The number of entries, damaged ones included; 0 if the file cannot be read."""
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
        """Report, once, that entries are damaged and count as missing; call it for a value that cannot be decoded."""
        self._report("rows", f"the {self._name} {self.path} has damaged entries; they count as missing")

    def _attempt(self, work: Callable[[], None]) -> None:
        """Run `work` on the file; if the file is damaged, replace it and try once more."""
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
        self._report("left out", f"the {self._name} {self.path} cannot be used, continuing without it: {reason}")

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
        # In a read-only folder, SQLite can read the file only if told that it is immutable.
        for options in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{name}?{options}", uri=True, timeout=_WAIT_S, check_same_thread=False)
            try:
                self._refuse_foreign(connection)
                tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if not tables:  # another process is just creating it
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
        """A valid database of something else is not damaged; we may rename it only in a folder of our own."""
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if names and _TABLE not in names:
            if self._strict and connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION_ID:
                raise _ForeignFileError("it is not a ragalign cache but another database; choose another file")
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
        """Rename a damaged file and start a new one with the entries that can still be read."""
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
            f"the {self._name} {path} is damaged ({reason}): it was renamed to {aside}, and {n_saved:,} of its entries "
            "were recovered",
        )
        if was_kept:
            self._keep_open()

    @property
    def _path(self) -> Path:
        if self.path is None:
            raise ValueError("it is closed")
        return self.path


class _ForeignFileError(Exception):
    """The file belongs to something else."""


def _look_at(path: Path, *, strict: bool) -> None:
    """Check, as SQLite does not, whether the file can be a database at all.

    Raises:
        sqlite3.DatabaseError: the file is damaged.
        _ForeignFileError: the file was never a database.
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
        # Our own files have zero bytes in their first page; a file without any is text.
        if strict and b"\0" not in head:
            raise _ForeignFileError("it is not a database; choose another file")
        raise sqlite3.DatabaseError("file is not a database")
    # SQLite reports an unknown format version as a read-only file.
    if len(head) < 100 or head[18] not in (1, 2) or head[19] not in (1, 2):
        raise sqlite3.DatabaseError("its header is damaged")


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute(_SCHEMA)
    return connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch the file to write-ahead mode, retrying: SQLite does not wait for other connections here."""
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
    """The intact rows of a damaged file, read from both ends up to the damage."""
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
    """Whether an error means that the file is damaged, rather than the disk full or the file locked."""
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
    """Hold a lock file, waiting for it if another process has it."""
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
