"""Stop strings: where a text ends, for whole texts and for streams.

Every generator follows one rule: a text ends where the first stop string to be *completed* begins. If one character
completes several, the one that begins first counts. A token-by-token engine does the same, so cutting a whole text and
filtering its chunks give the same result. Both also make the text valid Unicode (see `ragalign.text.valid_text`), since
all text from a model or a server passes through them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from ragalign.errors import ConfigError
from ragalign.text import ValidText, valid_text


def merge_stops(*groups: Iterable[str]) -> tuple[str, ...]:
    """Merge stop strings: no duplicates, longest first.

    vLLM prefers the earlier of two stop strings that the same character completes, so with the longest first it
    follows the rule above.

    Raises:
        ConfigError: a stop string is empty; it would cut every text to nothing.
    """
    stops = dict.fromkeys(stop for group in groups for stop in group)
    if "" in stops:
        raise ConfigError("a stop string is empty; remove it from the template or the decoding parameters")
    return tuple(sorted(stops, key=len, reverse=True))


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """Return `text` as valid Unicode up to its first stop string, or all of it if there is none."""
    text = valid_text(text)
    # (end, begin): the smallest end wins, then the smallest begin.
    found = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text


class StopFilter:
    """Filters a stream of text chunks: emits no stop string, no part of one, and nothing after it.

    For any chunking of a text, the results of `push` and `finish` add up to ``cut_at_stop(text, stops)``. A chunk's end
    is held back only while it could begin a stop string. Per stop string, time is linear in the text; memory is linear
    in the stop strings.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._searches = [_Search(stop) for stop in dict.fromkeys(stops)]
        self._valid = ValidText()
        # Text held back is always a prefix of a stop string, so the string and a length describe it.
        self._held: tuple[str, int] = ("", 0)
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed. From then on the filter emits nothing."""
        return self._stopped

    def push(self, chunk: str, *, final: bool = False) -> str:
        """Take the next chunk; return the text that is certain to belong to the answer.

        Half a surrogate pair at the end of a chunk is held back, unless the chunk is the `final` one.
        """
        if self._stopped:
            return ""
        chunk = self._valid.push(chunk) + (self._valid.finish() if final else "")
        held, n_held = self._held
        found = [
            (end, n_held + end - len(search.stop))
            for search in self._searches
            if (end := search.push(chunk)) is not None
        ]
        if found:
            n_sure, self._held, self._stopped = min(found)[1], ("", 0), True
        else:
            longest = max(self._searches, key=lambda search: search.matched, default=_Search(""))
            n_sure = n_held + len(chunk) - longest.matched
            self._held = (longest.stop, longest.matched)
        return held[: min(n_sure, n_held)] + chunk[: max(0, n_sure - n_held)]

    def finish(self) -> str:
        """Return the text held back: a prefix of a stop string that was never completed."""
        text = self.push("", final=True)
        (stop, n_held), self._held = self._held, ("", 0)
        return text + stop[:n_held]

    def beginnings(self) -> Iterator[tuple[str, int]]:
        """Each stop string with the lengths of its prefixes that the text ends with, longest first."""
        for search in self._searches:
            yield from ((search.stop, length) for length in search.matches())


class _Search:
    """Finds one string in a stream (Knuth, Morris and Pratt, "Fast pattern matching in strings", 1977).

    Attributes:
        stop: the string.
        matched: length of the longest proper prefix of the string that the text so far ends with.
    """

    __slots__ = ("_borders", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        # For each length, the longest proper border of the prefix of that length.
        self._borders = array("q", [0, 0])
        border = 0
        for char in stop[1:]:
            while border and stop[border] != char:
                border = self._borders[border]
            border += stop[border] == char
            self._borders.append(border)

    def push(self, chunk: str) -> int | None:
        """Take the next chunk; return the position in it where the string first ends, if it does."""
        stop, borders, matched = self.stop, self._borders, self.matched
        at, end = 0, len(chunk)
        while at < end:
            if not matched:
                at = chunk.find(stop[0], at)
                if at < 0:
                    break
            char = chunk[at]
            while matched and stop[matched] != char:
                matched = borders[matched]
            matched += stop[matched] == char
            at += 1
            if matched == len(stop):
                self.matched = 0
                return at
        self.matched = matched
        return None

    def matches(self) -> Iterator[int]:
        """The lengths of all proper prefixes of the string that the text so far ends with, longest first."""
        length = self.matched
        while length:
            yield length
            length = self._borders[length]
