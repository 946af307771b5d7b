"""Locks between processes: one writer per output.

The operating system holds them (``flock``), so a lock is released when its process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors of file systems without locks, such as some network mounts: there we continue without a lock.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})


class LockedError(OSError):
    """Another process holds the lock."""


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process.

    Args:
        path: created if missing. A symbolic link is not followed unless `follow` is set.
        follow: whether to lock what a symbolic link points to.

    Raises:
        LockedError: it is already held, in this process or in another.
        OSError: the file cannot be opened for writing, or is not a regular file.
    """

    def __init__(self, path: Path, *, follow: bool = False) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        handle = os.open(path, flags if follow else flags | os.O_NOFOLLOW, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockedError(errno.EWOULDBLOCK, "another process is using it", str(path)) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
        except BaseException:
            os.close(handle)
            raise
        self._handle: int | None = handle
        _held.add(self)

    @property
    def inode(self) -> int:
        """The inode of the locked file, to compare with the file that its path names now."""
        return os.fstat(self._handle).st_ino if self._handle is not None else -1

    def release(self) -> None:
        """Release the lock."""
        _held.discard(self)
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, which exists only while it is held.

    Raises:
        LockedError, OSError: as `FileLock`.
    """
    while True:
        lock = FileLock(path)
        with suppress(FileNotFoundError):
            # The previous holder can remove it between our opening and locking it.
            if lock.inode == path.lstat().st_ino:
                break
        lock.release()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_all() -> None:
    """Release all locks in a forked child, which must not keep those of a parent that dies."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_all)
