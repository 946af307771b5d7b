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


_HEADING = re.compile(r"#+ .*:")
_LONGEST_HEADING = 80  # characters; a longer line is not the heading of a turn


class FenceFilter:
    """Ends an answer at the fence that closes it; code blocks inside the answer keep their fences.

    The answer itself is in a fence, so a bare fence outside of a code block is ambiguous. It closes the answer if a
    blank line, a heading with a colon or the end of the text follows; otherwise it opens a code block. A heading with a
    colon and a bare fence below it begin an invented turn, so they end the answer too. A code block that is still open
    at the end of a finished answer gets its closing fence back, which was part of a stop string.

    Args:
        fence: a run of backticks or tildes.
    """

    def __init__(self, fence: str) -> None:
        self._char = fence[0]
        self._least = len(fence)
        self._held: list[str] = []  # from a run of fence characters that can close the answer
        # Then "run", "line" (blank rest of its line), "next" (blank beginning of the next line) and "next-heading"; or
        # "heading" and "turn" (a fence below a heading).
        self._stage = "text"
        self._run = 0  # length of the run that is held
        self._run_begins_line = False
        self._blank = True  # whether the line is blank so far
        self._n_runs = 0  # fences on the line so far
        self._opening = 0  # length of a fence that opens a code block, if its line ends without another one
        self._code = 0  # length of the fence that opened the code block; 0 outside of one
        self.closed = False

    def push(self, text: str) -> str:
        """Take the next chunk; return the text that is certain to belong to the answer."""
        if self.closed:
            return ""
        out: list[str] = []
        at = 0
        while at < len(text) and not self.closed:
            if self._stage == "text":
                at = self._skip_text(text, at, out)
            else:
                self._advance(text[at], out)
                at += 1
        return "".join(out)

    def finish(self, *, cut_off: bool) -> str:
        """Return the text held back, without the closing fence (or its prefix, if the answer was `cut_off`)."""
        if self.closed:
            return ""
        held = "".join(self._held)
        if self._stage == "heading":
            return held
        if self._stage == "turn":
            return "" if self._run >= self._least else held
        if self._stage == "next-heading":
            self._stage = "next" if _HEADING.fullmatch(held.rpartition("\n")[2].strip()) else "text"
            self._code = self._run if self._stage == "text" else 0
        if self._stage == "run" and self._run < self._least:
            return "" if cut_off and self._run_begins_line else held
        if self._stage != "text":
            if self._code:
                self._code = 0 if self._run_begins_line and self._run >= self._code else self._code
            elif self._closes():
                return ""
        return held + (f"\n{self._char * self._code}" if self._code and not cut_off else "")

    def _skip_text(self, text: str, at: int, out: list[str]) -> int:
        """Pass on text up to the next heading or run of fence characters; return the position after its first one."""
        end = text.find(self._char, at)
        part = text[at : end if end >= 0 else len(text)]
        heading = -1 if self._code or self._opening else self._find_heading(part)
        if heading >= 0:
            part, end = part[:heading], at + heading
        if part:
            out.append(part)
            _head, newline, tail = part.rpartition("\n")
            if newline:
                self._end_line(blank=not tail.strip())
            elif tail.strip():
                self._blank = False
        if end < 0:
            return len(text)
        if heading >= 0:
            self._stage, self._run, self._held = "heading", 0, ["#"]
            return end + 1
        self._stage, self._run, self._held = "run", 1, [self._char]
        self._run_begins_line = self._blank
        return end + 1

    def _find_heading(self, part: str) -> int:
        """The position of the first ``#`` at the start of a line; -1 if there is none."""
        if self._blank and part.startswith("#"):
            return 0
        found = part.find("\n#")
        return found + 1 if found >= 0 else -1

    def _advance(self, char: str, out: list[str]) -> None:
        """Take one character while a heading or a run of fence characters is held."""
        if self._stage in ("heading", "turn", "next-heading"):
            self._advance_heading(char, out)
            return
        if self._stage == "run" and char == self._char:
            self._run += 1
            self._held.append(char)
            return
        if self._stage == "run":
            self._opening = 0  # inline code, since an opening fence has no other on its line
            if self._run < self._least:
                self._blank = False
                self._release(char, out)
                return
            self._n_runs += 1
            self._stage = "line"
        if self._stage == "line":
            if char == "\n":
                self._after_line(char, out)
            elif char.isspace():
                self._held.append(char)
            else:
                if self._run_begins_line and not self._code:
                    self._opening = self._run
                self._blank = False
                self._release(char, out)
        elif char == "\n":
            self.closed, self._held = True, []
        elif char.isspace():
            self._held.append(char)
        elif char == "#" and self._run_begins_line:
            self._held.append(char)
            self._stage = "next-heading"
        else:
            self._code = self._run if self._run_begins_line else 0
            self._release(char, out)

    def _advance_heading(self, char: str, out: list[str]) -> None:
        """Take one character of a heading, or of the fence that can be below it."""
        if self._stage == "turn":
            self._advance_turn(char, out)
            return
        if char not in (self._char, "\n") and len(self._held) < _LONGEST_HEADING:
            self._held.append(char)
            return
        line = "".join(self._held).rpartition("\n")[2]
        if char == "\n" and _HEADING.fullmatch(line.strip()):
            if self._stage == "next-heading":
                self.closed, self._held = True, []
            else:
                self._held.append(char)
                self._stage = "turn"
            return
        if self._stage == "next-heading":
            self._code = self._run
        self._blank = False
        self._release(char, out)

    def _advance_turn(self, char: str, out: list[str]) -> None:
        """Take one character below a heading: a bare fence there begins an invented turn."""
        if char == self._char and self._held[-1] in (self._char, "\n"):
            self._run += 1
            self._held.append(char)
        elif char == "\n" and self._run >= self._least:
            self.closed, self._held = True, []
        elif char.isspace() and char != "\n" and self._run:
            self._held.append(char)
        else:
            below = "".join(self._held).rpartition("\n")[2]
            self._held = self._held[: len(self._held) - len(below)]
            self._release("", out)
            self._end_line(blank=True)
            out.append(self.push(below + char))

    def _after_line(self, char: str, out: list[str]) -> None:
        """Take a character after the line of the held run."""
        if self._code or not self._closes():
            if self._code and self._run_begins_line and self._run >= self._code:
                self._code = 0
            self._release("", out)
            out.append(char)
            self._end_line(blank=True)
            return
        self._held.append(char)
        self._end_line(blank=True)
        self._stage = "next"

    def _closes(self) -> bool:
        """Whether the held run can close the answer: it is alone on its line, or the odd one on its line."""
        return self._run_begins_line or (self._n_runs + (self._stage == "run")) % 2 == 1

    def _end_line(self, *, blank: bool) -> None:
        if self._opening:
            self._code, self._opening = self._opening, 0
        self._blank, self._n_runs = blank, 0

    def _release(self, char: str, out: list[str]) -> None:
        """Pass on the held text; `char` follows it and is handled as text."""
        out += self._held
        self._stage, self._held = "text", []
        if char:
            self._skip_text(char, 0, out)


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
