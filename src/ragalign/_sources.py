"""Input files as bytes: plain, gzip-compressed, or standard input."""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from ragalign.errors import DataError

STANDARD_INPUT = "-"

_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Source:
    """An input that can be read any number of times.

    Attributes:
        name: its name in messages.
        extension: of the name, in lower case, without ``.gz``: ``.jsonl`` for ``pool.jsonl.gz``.
        path: the file, or None for standard input.
        content: the bytes of standard input.
    """

    name: str
    extension: str
    path: Path | None = None
    content: bytes = b""

    @classmethod
    def of(cls, path: str | Path) -> Source:
        """The source for a path; ``-`` reads standard input to its end."""
        if str(path) == STANDARD_INPUT:
            return cls("standard input", ".json", content=sys.stdin.buffer.read())
        file = Path(path)
        inner = Path(file.stem) if file.suffix.lower() == ".gz" else file
        return cls(str(path), inner.suffix.lower(), file)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the source, decompressing it if needed.

        Raises:
            DataError: the source cannot be read, or its gzip data is damaged.
        """
        try:
            with io.BytesIO(self.content) if self.path is None else self.path.open("rb") as raw:
                start = raw.read(len(_GZIP))
                raw.seek(0)
                if start != _GZIP:
                    yield cast("BinaryIO", raw)
                    return
                with gzip.open(raw) as file:
                    yield cast("BinaryIO", file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{self.name}: damaged gzip file ({error}); get the file again") from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"{self.name}: cannot be read ({reason}); check the file and its permissions") from None

    def read(self) -> bytes:
        """Read all bytes, decompressed.

        Raises:
            DataError: as `open`.
        """
        with self.open() as file:
            return file.read()
