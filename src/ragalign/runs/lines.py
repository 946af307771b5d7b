"""JSON Lines that grow by one finished piece of work at a time."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import DataError

# A truncated escape, number or literal is noticed at its beginning; none that JSON ends at is longer.
_LONGEST_TOKEN = 24


class LineFile:
    """A JSON Lines file with rows of one kind.

    Reading never changes the file. Appending removes an unfinished last line first; call it under the output's lock.

    Args:
        path: the file, which need not exist.
        keys: what every row has; rows are written with the first of them first.
        claimed: whether a record says that the file is ours. Without one, at least one whole line has to show it
            before an unfinished one is removed.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], *, claimed: bool = True) -> None:
        self.path = path
        self._keys = keys
        self._claimed = claimed
        self._is_checked = False

    def read(self) -> list[dict[str, Any]]:
        """All whole rows, in the order of the file; a missing file has none.

        Raises:
            DataError: the file cannot be read, or holds something that was not written here.
        """
        return self._read()[0]

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row, whole and at once.

        Raises:
            DataError: the file holds something else, or cannot be written.
        """
        if not self._is_checked:
            self.repair()
        ordered = {self._keys[0]: row[self._keys[0]], **row}
        try:
            line = json.dumps(ordered, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half a surrogate pair: JSON can hold it as an escape only
            line = json.dumps(ordered).encode()
        self._write(line + b"\n")

    def repair(self) -> None:
        """Remove an unfinished last line.

        Raises:
            DataError: the file holds something that was not written here; it is left as it is.
        """
        _, n_whole, n_bytes = self._read()
        if n_whole < n_bytes:
            try:
                os.truncate(self.path, n_whole)
            except OSError as error:
                raise DataError(f"cannot write {self.path}: {error.strerror}") from None
        self._is_checked = True

    def _write(self, line: bytes) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                if file.write(line) != len(line):  # the disk has no room for the rest
                    raise OSError(None, "the disk is full", str(self.path))
        except OSError as error:
            self._is_checked = False  # part of the line may be there
            raise DataError(f"cannot write {self.path}: {error.strerror}; what was finished before is kept") from None

    def _read(self) -> tuple[list[dict[str, Any]], int, int]:
        """The rows, the bytes that they take, and the bytes of the file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0, 0
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from None
        n_whole = content.rfind(b"\n") + 1
        rows = []
        # Only \n ends a line: answers may hold other line ends of Unicode, which JSON does not escape.
        for number, line in enumerate(content[:n_whole].split(b"\n")[:-1], start=1):
            row = self._row(line)
            if row is None:
                raise self._foreign(f"line {number}")
            rows.append(row)
        tail = content[n_whole:]
        known = {*self._keys, *(key for row in rows for key in row)} if rows else None
        if tail and not ((rows or self._claimed) and is_unfinished(tail, self._keys, known)):
            raise self._foreign(f"line {len(rows) + 1}, which does not end,")
        return rows, n_whole, len(content)

    def _row(self, line: bytes) -> dict[str, Any] | None:
        """The row in a line, or None if it was not written here."""
        if not (line.startswith(b"{") and line.endswith(b"}")):
            return None
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        return row if isinstance(row, dict) and all(key in row for key in self._keys) else None

    def _foreign(self, where: str) -> DataError:
        return DataError(
            f"{self.path}: {where} was not written by this command, so the file is left as it is; "
            "choose another output, or move the file away"
        )


def is_unfinished(tail: bytes, keys: tuple[str, ...], known: Collection[str] | None = None) -> bool:
    """Whether bytes can be the beginning of a row with these keys, as `LineFile.append` writes it.

    A whole row counts, too: of its line only the line break is missing. Where `known` says which keys rows have, a tail
    whose second key is none of them is somebody else's.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(tail)  # the last character may be cut, which is not an error here
    except UnicodeDecodeError:
        return False
    start = f'{{"{keys[0]}": '
    if not (text.startswith(start) or start.startswith(text)):
        return False
    second = _second_key(text, start)
    if known is not None and second is not None and second not in known:
        return False
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return _ends_early(text, error)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and all(key in row for key in keys)


def _second_key(text: str, start: str) -> str | None:
    """The key after the first value; None where the text ends before it."""
    decoder = json.JSONDecoder()
    try:
        _, end = decoder.raw_decode(text, len(start))
        key, _ = decoder.raw_decode(text.removeprefix(text[:end] + ", "))
    except (ValueError, RecursionError):
        return None
    return key if isinstance(key, str) else None


def _ends_early(text: str, error: json.JSONDecodeError) -> bool:
    """Whether a text is wrong for its missing end only."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = text[error.pos :]
    # What is left where the parser stopped must be a token's beginning: "tru", "\u00", "-", "1.5e".
    if len(rest) > _LONGEST_TOKEN:
        return False
    if error.msg.startswith("Invalid \\u"):
        return all(character in "0123456789abcdefABCDEF\\u" for character in rest)
    if not rest.strip():
        return True
    return any(name.startswith(rest) for name in ("true", "false", "null", "NaN", "Infinity", "-Infinity")) or (
        set(rest) <= set("0123456789+-.eE")
    )
