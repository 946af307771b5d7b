"""Index folders on disk: atomic writing and checked reading. ``indexes/README.md`` describes the protocol.

Data files have the hash of their content in their names and are complete before the manifest names them. Replacing the
manifest is the commit.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path
from typing import Literal, TypeVar

from ragalign._locks import LockedError, locked
from ragalign.errors import ConfigError, DataError, IndexFormatError, IndexMismatchError
from ragalign.indexes.manifest import FileRecord, Manifest

Verification = Literal["full", "size"]
T = TypeVar("T")

MANIFEST = "manifest.json"
DISK_MANIFEST = "index.json"
"""The description of a `ragalign.indexes.on_disk.DiskIndex`."""
EXTENSIONS = {"pool": ".parquet", "vectors": ".npy", "faiss": ".faiss"}

_LOCK = ".lock"
_WORKSHOP = ".writing"
_DATA_FILE = re.compile(r"(pool|vectors|faiss)-[0-9a-f]{64}\.(parquet|npy|faiss)")
# A reader starts over if a writer has replaced the index meanwhile, up to this many times.
_MAX_READS = 100


def as_folder(folder: str | Path) -> Path:
    """Check that a path is valid for the operating system.

    Raises:
        IndexFormatError: it contains a NUL, or characters outside the file system's encoding.
    """
    try:
        if b"\0" not in os.fsencode(folder):
            return Path(folder)
    except UnicodeEncodeError:
        pass
    raise IndexFormatError(f"{str(folder)!r} cannot be a folder: its name contains a NUL or a lone surrogate")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the index in ``folder``.

    Raises:
        IndexFormatError: there is no manifest, or it is damaged.
    """
    return _read_manifest(folder)[0]


def _read_manifest(folder: Path) -> tuple[Manifest, tuple[int, int]]:
    """The manifest and the identity of its file, since an index can be replaced by another and then by itself."""
    path = as_folder(folder) / MANIFEST
    try:
        with path.open("rb") as file:
            content = file.read()
            status = os.fstat(file.fileno())
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            raise IndexFormatError(f"no index folder {folder}; build one with `ragalign index`") from None
        if (folder / DISK_MANIFEST).is_file():
            raise IndexFormatError(
                f"{folder} is an index on disk, which this operation does not support; build an index without --on-disk"
            ) from None
        raise IndexFormatError(f"{folder} has no {MANIFEST}: not an index, or its build was interrupted") from None
    except OSError as error:
        raise IndexFormatError(f"cannot read {path}: {error.strerror or error}") from None
    return Manifest.from_bytes(content, str(path)), (status.st_ino, status.st_mtime_ns)


def read_folder(folder: Path, load: Callable[[Manifest, Mapping[str, Path]], T], verify: Verification) -> T:
    """Check the data files and pass them to ``load``, all from the same version of the index.

    Args:
        folder: the index.
        load: takes the manifest and the path of each data file, by role.
        verify: ``full`` checks sizes and hashes, ``size`` only sizes.

    Raises:
        IndexFormatError: a file is missing or damaged.
    """
    for _ in range(_MAX_READS):
        manifest, which = _read_manifest(folder)
        paths = {role: folder / manifest.files[role].name for role in EXTENSIONS}
        try:
            for role, path in paths.items():
                _check_file(path, manifest.files[role], verify)
            return load(manifest, paths)
        except (FileNotFoundError, IndexFormatError) as error:
            if _read_manifest(folder)[1] != which:
                continue
            if isinstance(error, FileNotFoundError):
                raise IndexFormatError(f"{error.filename} is missing; build the index again") from None
            raise
        except OSError as error:
            raise IndexFormatError(f"cannot read {error.filename or folder}: {error.strerror or error}") from None
    raise IndexFormatError(f"{folder} was replaced {_MAX_READS} times while it was being opened; try again")


def write_folder(
    folder: Path, manifest: Manifest, writers: Mapping[str, Callable[[Path], None]], expected: str | None
) -> Manifest:
    """Write an index, replacing an existing one atomically.

    Args:
        folder: a new or empty folder, or an index.
        manifest: the manifest, without `files` and `checksum`.
        writers: for each role, a function that writes its file to a given path.
        expected: the required checksum of the existing manifest, if any.

    Returns:
        The manifest as written.

    Raises:
        ConfigError: the folder contains something else.
        IndexMismatchError: another writer has replaced the index that this one comes from.
        IndexFormatError: it cannot be written; the existing index is unchanged.
    """
    try:
        refuse_other_folders(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / _LOCK):
            if expected is not None and expected != (now := _current(folder)) and now is not None:
                raise IndexMismatchError(
                    f"{folder} has been changed by another process since it was opened; open it again and repeat"
                )
            try:
                return _write(folder, manifest, writers)
            finally:
                # Files that cannot be removed now are harmless; the next writer tries again.
                with suppress(OSError):
                    _sweep(folder)
    except LockedError:
        raise IndexFormatError(f"another process is writing the index {folder}; wait until it is done") from None
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise IndexFormatError(f"cannot write the index {folder}: {reason}; the existing index is unchanged") from None


def _write(folder: Path, manifest: Manifest, writers: Mapping[str, Callable[[Path], None]]) -> Manifest:
    _sweep(folder)
    workshop = folder / _WORKSHOP
    workshop.mkdir()
    files = {}
    for role, extension in EXTENSIONS.items():
        path = workshop / f"{role}{extension}"
        writers[role](path)
        flush(path)
        digest = sha256_of(path)
        files[role] = FileRecord(f"{role}-{digest}{extension}", path.stat().st_size, digest)
        path.replace(folder / files[role].name)
    flush(folder)
    content = replace(manifest, files=files).to_bytes()
    path = workshop / MANIFEST
    path.write_bytes(content)
    flush(path)
    path.replace(folder / MANIFEST)
    flush(folder)
    return Manifest.from_bytes(content, str(folder / MANIFEST))


def _sweep(folder: Path) -> None:
    """Remove files that the manifest does not name: leftovers of killed writers and of replaced indexes."""
    shutil.rmtree(folder / _WORKSHOP, ignore_errors=True)
    try:
        named = {record.name for record in read_manifest(folder).files.values()}
    except IndexFormatError:
        if (folder / MANIFEST).exists():
            return  # the manifest is damaged: keep the files for inspection
        named = set()
    for path in folder.iterdir():
        if _DATA_FILE.fullmatch(path.name) and path.name not in named:
            path.unlink()


def _current(folder: Path) -> str | None:
    return read_manifest(folder).checksum if (folder / MANIFEST).exists() else None


def refuse_other_folders(folder: Path) -> None:
    """Check that an index can be written to a folder.

    Raises:
        ConfigError: it is a file, or contains something other than an index.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; name a folder for the index")
    if not folder.is_dir():
        return
    with suppress(FileNotFoundError):
        if b'"ragalign-index"' not in (folder / MANIFEST).read_bytes()[:200]:
            raise ConfigError(f"{folder} has a {MANIFEST} of something else; name another folder for the index")
        return
    for path in folder.iterdir():
        # A manifest that appears only now was just written by another process.
        if path.name not in {_LOCK, _WORKSHOP, MANIFEST} and not _DATA_FILE.fullmatch(path.name):
            raise ConfigError(
                f"{folder} is neither empty nor an index (it has {path.name!r}); name another folder for the index"
            )


def _check_file(path: Path, record: FileRecord, verify: Verification) -> None:
    size = path.stat().st_size
    if size != record.size:
        raise IndexFormatError(f"{path} is damaged: {size} bytes instead of {record.size}; build the index again")
    if verify == "full" and sha256_of(path) != record.sha256:
        raise IndexFormatError(f"{path} is damaged: its SHA-256 does not match; build the index again")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file or a folder's entries to disk, so that they survive a power failure."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
