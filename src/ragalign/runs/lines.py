"""JSON Lines files that are appended to and resumed."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import DataError

# The JSON parser reports a truncated escape, number or literal at its start; none of them is longer than this.
_LONGEST_TOKEN = 24


class LineFile:
    """A JSON Lines file with rows of one kind.

    Reading never changes the file. Appending removes an unfinished last line first; call it under the output's lock.

    Args:
        path: the file, which need not exist.
        keys: the keys of every row; the first one is written first.
        claimed: whether a record shows that the file is ours. Without it, an unfinished line is removed only if the
            file has at least one complete line of ours.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], *, claimed: bool = True) -> None:
        self.path = path
        self._keys = keys
        self._claimed = claimed
        self._is_checked = False

    def read(self) -> list[dict[str, Any]]:
        """Read all complete rows in file order; none if the file is missing.

        Raises:
            DataError: the file cannot be read, or has lines that were not written by this class.
        """
        return self._read()[0]

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row with a single write.

        Raises:
            DataError: the file has other content, or cannot be written.
        """
        if not self._is_checked:
            self.repair()
        ordered = {self._keys[0]: row[self._keys[0]], **row}
        try:
            line = json.dumps(ordered, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # a lone surrogate: JSON can represent it only as an escape
            line = json.dumps(ordered).encode()
        self._write(line + b"\n")

    def repair(self) -> None:
        """Remove an unfinished last line.

        Raises:
            DataError: the file has lines that were not written by this class; it is not changed.
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
                if file.write(line) != len(line):  # there is no room for the rest
                    raise OSError(None, "the disk is full", str(self.path))
        except OSError as error:
            self._is_checked = False  # part of the line can be in the file
            raise DataError(f"cannot write {self.path}: {error.strerror}; finished work is kept") from None

    def _read(self) -> tuple[list[dict[str, Any]], int, int]:
        """The rows, the size of their lines in bytes, and the size of the file."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return [], 0, 0
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from None
        n_whole = content.rfind(b"\n") + 1
        rows = []
        # Only \n ends a line: answers can contain other Unicode line breaks, which JSON does not escape.
        for number, line in enumerate(content[:n_whole].split(b"\n")[:-1], start=1):
            row = self._row(line)
            if row is None:
                raise self._foreign(f"line {number}")
            rows.append(row)
        tail = content[n_whole:]
        known = {*self._keys, *(key for row in rows for key in row)} if rows else None
        if tail and not ((rows or self._claimed) and is_unfinished(tail, self._keys, known)):
            raise self._foreign(f"line {len(rows) + 1}, which has no line break,")
        return rows, n_whole, len(content)

    def _row(self, line: bytes) -> dict[str, Any] | None:
        """The row in a line, or None if the line is not ours."""
        if not (line.startswith(b"{") and line.endswith(b"}")):
            return None
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        return row if isinstance(row, dict) and all(key in row for key in self._keys) else None

    def _foreign(self, where: str) -> DataError:
        return DataError(
            f"{self.path}: {where} was not written by this command, so the file is not changed; "
            "choose another output, or move the file away"
        )


def is_unfinished(tail: bytes, keys: tuple[str, ...], known: Collection[str] | None = None) -> bool:
    """Whether bytes can be the start of a row with these keys, as written by `LineFile.append`.

    A complete row without its line break counts, too. Where `known` says which keys rows have, a tail
    whose second key is none of them is somebody else's.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        text = decoder.decode(tail)  # the last character can be truncated, which is not an error here
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
    """Whether a JSON text is invalid only because its end is missing."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = text[error.pos :]
    # The rest after the parser's position must be the start of a token: "tru", "\u00", "-", "1.5e".
    if len(rest) > _LONGEST_TOKEN:
        return False
    if error.msg.startswith("Invalid \\u"):
        return all(character in "0123456789abcdefABCDEF\\u" for character in rest)
    if not rest.strip():
        return True
    return any(name.startswith(rest) for name in ("true", "false", "null", "NaN", "Infinity", "-Infinity")) or (
        set(rest) <= set("0123456789+-.eE")
    )
