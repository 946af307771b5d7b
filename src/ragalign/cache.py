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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Self

from ragalign._cache_file import (
    APPLICATION_ID,
    FILE_ERRORS,
    KEYS_PER_QUERY,
    SCHEMA,
    TABLE,
    WAIT_S,
    ForeignFileError,
    check_header,
    checksum_of,
    empty_database,
    insert_rows,
    is_damage,
    is_sound,
    reason_of,
    row_id,
    salvaged_rows,
    write_ahead,
)
from ragalign._locks import LockedError, locked
from ragalign.errors import DataError

_log = logging.getLogger(__name__)

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
            self._kept.execute(SCHEMA)
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
                for start in range(0, len(keys), KEYS_PER_QUERY):
                    found.update(self._select(connection, keys[start : start + KEYS_PER_QUERY]))

        self._attempt(read)
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Add or replace entries, all or none. Once this returns they survive a kill.

        Raises:
            CacheError: a strict cache cannot be written.
        """
        rows = [(key, value, checksum_of(key, value)) for key, value in entries.items()]

        def write() -> None:
            if self._read_only:
                raise PermissionError(None, "the cache was opened read-only")
            with self._connection(write=True) as connection:
                insert_rows(connection, rows)

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
                count = int(connection.execute(f"SELECT COUNT(*) FROM {TABLE}").fetchone()[0])

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
            except ForeignFileError as error:
                self._give_up(str(error))
            except FILE_ERRORS as error:
                if not is_damage(error):
                    self._give_up(reason_of(error))
                    return
                try:
                    self._replace(reason_of(error))
                    work()
                except (*FILE_ERRORS, ForeignFileError) as again:
                    self._give_up(reason_of(again))

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
        check_header(path, strict=self._strict)
        if not write:
            return self._open_for_reading(path)
        connection = sqlite3.connect(path, timeout=WAIT_S, check_same_thread=False)
        try:
            self._refuse_foreign(connection)
            write_ahead(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            with connection:
                connection.execute(SCHEMA)
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_for_reading(self, path: Path) -> sqlite3.Connection:
        name = path.absolute().as_uri()
        # In a read-only folder, SQLite can read the file only if told that it is immutable.
        for options in ("mode=ro", "mode=ro&immutable=1"):
            connection = sqlite3.connect(f"{name}?{options}", uri=True, timeout=WAIT_S, check_same_thread=False)
            try:
                self._refuse_foreign(connection)
                tables = connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
                if not tables:  # another process is just creating it
                    connection.close()
                    return empty_database()
                return connection
            except sqlite3.OperationalError as error:
                connection.close()
                is_last = options != "mode=ro" or Path(f"{path}-wal").exists()
                if is_last or is_damage(error):
                    raise
            except BaseException:
                connection.close()
                raise
        raise AssertionError("one of the ways returns or raises")

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        """A valid database of something else is not damaged; we may rename it only in a folder of our own."""
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if names and TABLE not in names:
            if self._strict and connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise ForeignFileError("it is not a ragalign cache but another database; choose another file")
            raise sqlite3.DatabaseError(f"it has no table {TABLE}")

    def _select(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        wanted = {row_id(key): key for key in keys}
        marks = ",".join("?" * len(wanted))
        rows = connection.execute(f"SELECT id, key, value, checksum FROM {TABLE} WHERE id IN ({marks})", list(wanted))
        for id_, key, value, checksum in rows:
            if is_sound(key, value, checksum):
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
                for rows in salvaged_rows(aside):
                    insert_rows(fresh, rows)
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
    deadline = time.monotonic() + WAIT_S
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
