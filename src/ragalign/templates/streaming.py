"""Cleaning a model's output while it streams in."""

from __future__ import annotations

from ragalign.templates.escaping import MARK, visible_length
from ragalign.templates.template import END_OF_TEXT, Template


class CleanStream:
    """Applies `Template.clean` to a stream: for any chunks, the pieces that come out add up to the cleaned whole.

    Text is held back while its end may still change: white space, what may be a closing fence, the beginning of a
    stop string or an end-of-text mark, and a backslash that may turn out to neutralise a delimiter.
    """

    def __init__(self, template: Template) -> None:
        self._template = template
        self._escaper = template.escaper if template.escape == "neutralise" else None
        self._ends = template.stop if template.erased else (*template.stop, *END_OF_TEXT)
        self._watched = (*template.stop, *END_OF_TEXT)
        # Runs of these characters may be, or hold, what cleaning takes away.
        self._loose = "".join(template.erase if template.erased else ["`"] if template.fenced else [])
        self._raw = "\n" if template.cue.endswith("\n") else ""  # as in `Template.clean`
        self._n_done = 0  # characters of the raw text that have been dealt with
        self._n_given = 0  # characters of the clean text that have been given away
        self._ended = False

    def push(self, text: str) -> str:
        """Take a piece of raw output; give what is sure by now."""
        if self._ended:
            return ""
        searched = max(0, len(self._raw) - max(map(len, self._watched)))
        self._raw += text
        ends = [found for end in self._ends if (found := self._raw.find(end, searched)) >= 0]
        if ends:
            self._raw = self._raw[: min(ends)]
            self._ended = True
        given = self._clean_until(self._sure())
        self._n_given += len(given)
        return given

    def finish(self, *, finished: bool = True) -> str:
        """What was held back, cleaned as the end of the output; `finished` as in `Template.clean`."""
        return self._template.clean(self._raw, finished=finished or self._ended)[self._n_given :]

    def _clean_until(self, end: int) -> str:
        """The next part of the clean text, up to the raw position `end`."""
        start, self._n_done = self._n_done, max(end, self._n_done)
        part = self._raw[start : self._n_done]
        if self._escaper and MARK in part:
            marks = {cut - 1 for cut in self._escaper.cuts(self._raw) if cut and self._raw[cut - 1] == MARK}
            part = "".join(char for at, char in enumerate(part, start) if at not in marks)
        part = self._template.without_erased(part)
        return part if self._n_given else part.lstrip()

    def _sure(self) -> int:
        """How much of the raw text no continuation changes."""
        raw = self._raw
        begun = [n for end in self._watched for n in range(min(len(end) - 1, len(raw)), 0, -1) if raw.endswith(end[:n])]
        return min(self._n_before_end(raw[: len(raw) - max(begun, default=0)]), self._first_open_mark())

    def _n_before_end(self, text: str) -> int:
        """The length of `text` without what cleaning may take from its end."""
        while True:
            shorter = text.rstrip().rstrip(self._loose)
            for string in END_OF_TEXT:
                shorter = shorter.removesuffix(string)
            if len(shorter) == len(text):
                return len(text)
            text = shorter

    def _first_open_mark(self) -> int:
        """Where the first backslash stands whose delimiter, if it is in one, may not be complete yet."""
        raw, found = self._raw, len(self._raw)
        if not self._escaper:
            return found
        at = raw.rfind(MARK, self._n_done)
        while at >= 0 and visible_length(raw[at:]) <= self._escaper.reach:
            found, at = at, raw.rfind(MARK, self._n_done, at)
        return found
