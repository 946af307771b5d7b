"""Writing files atomically."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".new"
"""The suffix of files that are being written."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file beside this one, which replaces it at the end; its folder is created if missing.

    The new file has the permissions that the umask gives, and is removed if the block fails.

    Raises:
        OSError: the folder is not writable; the file is not changed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, creating the folder if missing.

    Raises:
        OSError: the folder is not writable; the file is not changed.
    """
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: Path, value: Any, *, indent: int = 1) -> None:
    """Write a JSON document atomically.

    Raises:
        OSError: as `write_text`.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8, say: JSON can hold it as an escape only
        text = json.dumps(value, indent=indent)
    write_text(path, text + "\n")


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON Lines atomically.

    Raises:
        OSError: as `write_text`.
        ValueError: a row contains NaN or infinity.
    """
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))
