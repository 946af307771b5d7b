"""Undoing neutralisation in a stream."""

from __future__ import annotations

from ragalign.templates.escaping import MARK, Escaper, in_skeleton, n_visible

# Text held back beyond this multiple of the delimiters' reach has runs of white space or invisible characters.
_LONG = 8
# Marks are examined again when one in so many of the characters at hand is new, so that each costs a fixed amount.
_SHARE = 32


class UnescapeStream:
    """Applies `Escaper.unescape` to a stream, for any chunking.

    A mark is held back until as many visible characters follow as in the longest delimiter; only then is it known
    whether the mark is inside a delimiter. A mark is never inside one if an invisible character follows directly.
    """

    def __init__(self, escaper: Escaper) -> None:
        self._escaper = escaper
        self._context: list[str] = []  # text passed on, as far back as a delimiter can reach
        self._n_context = 0
        self._n_context_kept = 0  # its length when it was last shortened
        self._whole_context = True  # whether it is complete
        self._held: list[str] = []  # from the first undecided mark
        self._n_held = 0
        self._n_after = 0  # visible characters after that mark
        self._n_new = 0  # characters since the marks were last examined

    def push(self, text: str) -> str:
        """Take the next chunk; return the text that is certain by now."""
        plain = ""
        if self._n_held == 1 and text and not in_skeleton(text[0]):
            plain, self._held, self._n_held = MARK, [], 0
        if not self._held:
            at = _first_candidate(text)
            plain, text = plain + text[:at], text[at:]
            self._remember(plain)
            self._n_after = self._n_new = 0
        if not text:
            return plain
        self._held.append(text)
        self._n_held += len(text)
        self._n_after += n_visible(text)
        self._n_new += len(text)
        return plain + self._decide() if self._is_due() else plain

    def finish(self) -> str:
        """Return the text held back."""
        text = "".join(self._held)
        marks = self._own_marks(text)
        self._held, self._n_held = [], 0
        return "".join(char for at, char in enumerate(text) if at not in marks)

    def _is_due(self) -> bool:
        """Whether the first mark can be decided, and examining the held text is worth the cost."""
        length = self._n_held + self._n_context
        share = _SHARE if length <= _LONG * self._escaper.reach else 2
        return self._n_after > self._escaper.reach and self._n_new >= length // share

    def _decide(self) -> str:
        """Pass on everything before the first mark that is not followed by enough visible characters."""
        text = "".join(self._held)
        end = self._first_undecided(text)
        marks = self._own_marks(text)
        out = "".join(char for at, char in enumerate(text[:end]) if at not in marks)
        self._remember(text[:end])
        rest = text[end:]
        self._held = [rest] if rest else []
        self._n_held, self._n_new = len(rest), 0
        self._n_after = n_visible(rest)
        return out

    def _first_undecided(self, text: str) -> int:
        """The position of the first mark with no more visible characters after it than a delimiter can have."""
        n_after, found = 0, len(text)
        for at in range(len(text) - 1, -1, -1):
            if n_after > self._escaper.reach:
                break
            if text[at] != MARK:
                n_after += n_visible(text[at])
            elif at + 1 == len(text) or in_skeleton(text[at + 1]):
                found = at
        return found

    def _own_marks(self, text: str) -> set[int]:
        """The positions of neutralising marks in `text`, which is held back."""
        context = "".join(self._context)
        # A visible character before the context, so that its beginning does not look like the start of a line.
        before = context if self._whole_context else f"x{context}"
        whole = before + text
        return {
            cut - 1 - len(before) for cut in self._escaper.cuts(whole) if cut > len(before) and whole[cut - 1] == MARK
        }

    def _remember(self, text: str) -> None:
        self._context.append(text)
        self._n_context += len(text)
        if self._n_context <= 2 * max(self._n_context_kept, _LONG * self._escaper.reach):
            return
        context = "".join(self._context)
        n_before, start = 0, len(context)
        while start and n_before <= self._escaper.reach:
            start -= 1
            n_before += n_visible(context[start])
        self._context = [context[start:]]
        self._whole_context = self._whole_context and start == 0
        self._n_context = self._n_context_kept = len(context) - start


def _first_candidate(text: str) -> int:
    """The position of the first mark that can neutralise; the length of `text` if there is none."""
    at = text.find(MARK)
    while 0 <= at < len(text) - 1 and not in_skeleton(text[at + 1]):
        at = text.find(MARK, at + 1)
    return at if at >= 0 else len(text)
