"""Cleaning a model's raw output while it streams.

A stream passes through a chain of filters: valid Unicode, stop strings, the closing fence, erased strings, neutralised
delimiters, and white space at the ends. Each filter gives the same text for any chunking, and so does the chain.
`Template.clean` uses the same chain.

Every filter takes time linear in the text, for any text and any chunking, and holds back only text whose meaning can
still change.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ragalign.stopping import StopFilter
from ragalign.templates.escaping import Escaper
from ragalign.templates.fences import FenceFilter
from ragalign.templates.unescaping import UnescapeStream


@dataclass(frozen=True, slots=True)
class Cleaning:
    r"""How a template cleans answers.

    Attributes:
        stop: stop strings, where the answer ends.
        end_marks: end-of-text marks, where the answer also ends; unlike those of stop strings, their prefixes are kept.
        erase: strings to delete anywhere; end-of-text marks among them become a space.
        begins_line: whether an answer begins a line, so that it can begin with a stop string such as "\\nQuestion:".
        fence: the fence around answers, or "".
        escaper: undoes neutralising; None if nothing is neutralised.
    """

    stop: tuple[str, ...]
    end_marks: tuple[str, ...]
    erase: tuple[str, ...]
    begins_line: bool
    fence: str
    escaper: Escaper | None


class HasCleaning(Protocol):
    """An object with cleaning rules, such as a template."""

    @property
    def cleaning(self) -> Cleaning:
        """The rules for cleaning answers."""


class CleanStream:
    """Applies `Template.clean` to a stream: for any chunking, the results add up to the cleaned text."""

    def __init__(self, template: HasCleaning) -> None:
        cleaning = template.cleaning
        self._cleaning = cleaning
        self._stops = StopFilter(cleaning.stop if cleaning.erase else (*cleaning.stop, *cleaning.end_marks))
        self._fence = FenceFilter(cleaning.fence) if cleaning.fence and not cleaning.erase else None
        self._eraser = _Eraser(cleaning.erase, cleaning.end_marks) if cleaning.erase else None
        self._unescape = UnescapeStream(cleaning.escaper) if cleaning.escaper else None
        self._ends = _Stripper()
        self._last = ""  # the last character that passed the stop strings
        if cleaning.begins_line:
            self._after_stops(self._stops.push("\n"))

    @property
    def ended(self) -> bool:
        """Whether the answer has ended, so that nothing more belongs to it."""
        return self._stops.stopped or (self._fence is not None and self._fence.closed)

    def push(self, text: str) -> str:
        """Take a chunk of raw output; return the part of the answer that is certain by now."""
        return "" if self.ended else self._after_stops(self._stops.push(text))

    def finish(self, *, finished: bool = True) -> str:
        """Return the text held back, cleaned as the end of the output; `finished` as in `Template.clean`."""
        text = "" if self.ended else self._after_stops(self._stops.push("", final=True))
        cut_off = not finished and not self.ended
        begun = list(self._stops.beginnings()) if cut_off else []
        held = self._stops.finish()
        text += self._after_stops(held[: len(held) - self._n_begun(begun, self._last + held)])
        rest = self._fence.finish(cut_off=cut_off) if self._fence else ""
        rest = self._eraser.push(rest) + self._eraser.finish() if self._eraser else rest
        rest = self._unescape.push(rest) + self._unescape.finish() if self._unescape else rest
        return text + self._ends.push(rest)

    def _after_stops(self, text: str) -> str:
        self._last = text[-1:] or self._last
        for stage in (self._fence, self._eraser, self._unescape, self._ends):
            if stage is not None:
                text = stage.push(text)
        return text

    def _n_begun(self, begun: Sequence[tuple[str, int]], text: str) -> int:
        """Length of the longest of these prefixes of stop strings at the end of `text` that begins a line."""
        return max(
            (
                length
                for stop, length in begun
                if stop in self._cleaning.stop
                and (stop[0] == "\n" or len(text) == length or text[len(text) - length - 1] == "\n")
            ),
            default=0,
        )


class _Eraser:
    """Deletes strings from a stream; end-of-text marks become a space."""

    def __init__(self, strings: tuple[str, ...], end_marks: tuple[str, ...]) -> None:
        # Of two strings with a common prefix, the shorter one is complete first, for any chunking.
        self._strings = sorted(strings, key=len)
        self._pattern = re.compile("|".join(map(re.escape, self._strings)))
        self._end_marks = end_marks
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        out, start = [], 0
        for match in self._pattern.finditer(text):
            out += [text[start : match.start()], " " if match[0] in self._end_marks else ""]
            start = match.end()
        rest = text[start:]
        keep = max(
            (n for string in self._strings for n in range(min(len(string) - 1, len(rest)), 0, -1)
             if rest.endswith(string[:n])),
            default=0,
        )  # fmt: skip
        self._held = rest[len(rest) - keep :]
        return "".join(out) + rest[: len(rest) - keep]

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


class _Stripper:
    """Drops white space at both ends of a stream."""

    def __init__(self) -> None:
        self._begun = False
        self._spaces: list[str] = []

    def push(self, text: str) -> str:
        if not self._begun:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            if self._begun and text:
                self._spaces.append(text)
            return ""
        out = "".join((*self._spaces, body))
        self._begun, self._spaces = True, [text[len(body) :]]
        return out
