"""Finding the fence that closes an answer."""

from __future__ import annotations

import re

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
