"""Reading the rows of a JSON document one at a time, with line or row numbers."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from ragalign.errors import DataError
from ragalign.pool.report import Unit
from ragalign.pool.rows import Problem, Rows, escaped_byte


class JsonArray:
    """Iterates over the rows of a JSON document, parsing one at a time and counting lines."""

    def __init__(self, file: str, text: str, unit: Unit) -> None:
        self._file = file
        self._unit = unit
        self._text = text
        self._decoder = json.JSONDecoder()
        self._damaged = not text.isascii() and escaped_byte(text) is not None
        self._position = 0
        self._line = 1
        self._counted = 0

    def rows(self) -> Rows:
        """The objects of the array, or of the array under "data"."""
        start = self._peek()
        if start == "[":
            yield from self._array()
        elif start == "{":
            yield from self._document()
        else:
            raise self._error("neither an array of rows nor an object with an array of rows under 'data'")
        if self._peek():
            raise self._error("extra text after the end of the JSON document")

    def _document(self) -> Rows:
        found = False
        self._position += 1
        while self._peek() != "}":
            key = self._value()
            if not isinstance(key, str):
                raise self._error("a key of the object is not text")
            self._expect(":")
            if key == "data" and self._peek() == "[":
                found = True
                yield from self._array()
            else:
                self._value()
            if self._peek() == ",":
                self._position += 1
            elif self._peek() != "}":
                raise self._error("expected ',' or '}'")
        self._position += 1
        if not found:
            raise DataError(f"{self._file}: the document is an object without an array of rows under 'data'; add one")

    def _array(self) -> Rows:
        self._position += 1
        if self._peek() == "]":
            self._position += 1
            return
        for row in count(1):
            self._peek()
            number, start = self._line_number() if self._unit == "line" else row, self._position
            value = self._value()
            if self._damaged and (bad := escaped_byte(self._text[start : self._position])) is not None:
                yield number, Problem(f"not UTF-8: byte 0x{bad:02x}")
            elif isinstance(value, dict):
                yield number, value
            else:
                yield number, Problem("a JSON value that is not an object")
            if self._peek() == "]":
                self._position += 1
                return
            self._expect(",")

    def _value(self) -> Any:
        self._peek()
        try:
            value, self._position = self._decoder.raw_decode(self._text, self._position)
        except json.JSONDecodeError as error:
            self._position = error.pos
            raise self._error(error.msg.removesuffix(" starting at")) from None
        except (ValueError, RecursionError) as error:
            raise self._error(str(error)) from None
        return value

    def _peek(self) -> str:
        """The next character that is not whitespace, or "" at the end."""
        text, position = self._text, self._position
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        self._position = position
        return text[position] if position < len(text) else ""

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._error(f"expected {character!r}")
        self._position += 1

    def _line_number(self) -> int:
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._line

    def _error(self, reason: str) -> DataError:
        line = self._text.count("\n", 0, self._position) + 1
        return DataError(f"{self._file}:{line}: not valid JSON ({reason}); correct the file: later rows cannot be read")
