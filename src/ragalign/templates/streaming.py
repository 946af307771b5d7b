"""Cleaning a model's output while it streams in."""

from __future__ import annotations

import re

from ragalign.templates.template import Template

# What the cleaning of a text's end may still change begins with one of these characters, this close to the end.
_SUSPICIOUS = re.compile(r"[`<\[\\#\uff03\uff40\uff1c]")
_WINDOW = 96


class CleanStream:
    """Applies `Template.clean` to a stream: the pieces that come out add up to the cleaned whole.

    Text is held back while its end may still change: trailing white space, and whatever could be the start of a
    fence, a delimiter or an end-of-text mark.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._raw = ""
        self._emitted = 0

    def push(self, text: str) -> str:
        """Take a piece of raw output; give what is sure by now."""
        self._raw += text
        return self._emit(self._template.clean(self._raw[: self._sure()]))

    def finish(self) -> str:
        """What was held back, cleaned as the end of the output."""
        return self._emit(self._template.clean(self._raw))

    def _sure(self) -> int:
        start = max(0, len(self._raw) - _WINDOW)
        found = _SUSPICIOUS.search(self._raw, start)
        line = max(self._raw.rfind("\n"), start)
        # A label is a delimiter at the start of a line, once its colon is there.
        label = line if len(self._raw) - line < _WINDOW and self._may_be_label(self._raw[line:]) else len(self._raw)
        return min(found.start() if found else len(self._raw), label)

    def _may_be_label(self, line: str) -> bool:
        begun = line.strip().lower()
        return any(label.lower().startswith(begun[:4]) for label in self._template.delimiters if label.endswith(":"))

    def _emit(self, clean: str) -> str:
        new = clean[self._emitted :]
        self._emitted = max(self._emitted, len(clean))
        return new
