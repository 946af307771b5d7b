"""Checks of output paths, made while options are parsed, before any work that could be lost."""

from __future__ import annotations

import os
from pathlib import Path

# The formats of pools.
_POOL_ENDINGS = (".parquet", ".jsonl")


def out_file(path: Path | None) -> Path | None:
    """The file, if it can be written.

    Raises:
        ConfigError: it is a folder, is not writable, or its folder cannot be created.
    """
    if path is None:
        return None
    _check_name(path)
    if path.is_dir():
        _refuse(path, "is a folder; give the name of a file")
    if path.exists() and not os.access(path, os.W_OK):
        _refuse(path, "is not writable; check its permissions")
    _check_parent(path)
    return path


def out_pool(path: Path) -> Path:
    """The pool file, if it can be written.

    Raises:
        ConfigError: as `out_file`, or its ending is not that of a format that pools are written in.
    """
    if path.suffix.lower() not in _POOL_ENDINGS:
        _refuse(path, f"has the unknown extension {path.suffix!r} for a pool; use {' or '.join(_POOL_ENDINGS)}")
    out_file(path)
    return path


def out_folder(path: Path | None) -> Path | None:
    """The folder, if files can be written into it.

    Raises:
        ConfigError: it is a file, is not writable, or cannot be created.
    """
    if path is None:
        return None
    _check_name(path)
    if path.exists() and not path.is_dir():
        _refuse(path, "is a file; give the name of a folder")
    if path.exists() and not os.access(path, os.W_OK | os.X_OK):
        _refuse(path, "is not writable; check its permissions")
    _check_parent(path)
    return path


def _check_name(path: Path) -> None:
    if "\0" in str(path) or not str(path).strip():
        _refuse(path, "is not a valid file name")


def _check_parent(path: Path) -> None:
    """Reject a path below a file, or in a folder that is not writable."""
    above = next(parent for parent in path.absolute().parents if parent.exists() or parent.is_symlink())
    if not above.is_dir():
        _refuse(path, f"cannot be created: {above} is not a folder")
    if not path.exists() and not os.access(above, os.W_OK | os.X_OK):
        _refuse(path, f"cannot be created: {above} is not writable")


def _refuse(path: Path, why: str) -> None:
    from ragalign.errors import ConfigError

    raise ConfigError(f"--out {str(path)!r} {why}")
