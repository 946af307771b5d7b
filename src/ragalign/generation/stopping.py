"""Stop strings: where a text ends, for whole texts and for streams.

Every generator shares one rule: a text ends where the first stop string to be *completed* begins. Of
several that are completed by the same character, the one that begins first counts. This is what a
token-by-token engine does, and it makes cutting a whole text and filtering its chunks the same thing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ragalign.errors import ConfigError


def merge_stops(*groups: Iterable[str]) -> tuple[str, ...]:
    """All stop strings of `groups` without duplicates, longest first.

    vLLM prefers the earlier one in the list when two are completed at the same character, so
    longest first makes it follow the rule above.

    Raises:
        ConfigError: a stop string is empty; it would end every text before it begins.
    """
    stops = dict.fromkeys(stop for group in groups for stop in group)
    if "" in stops:
        raise ConfigError("a stop string is empty; remove it from the template or the decoding parameters")
    return tuple(sorted(stops, key=len, reverse=True))


def cut_at_stop(text: str, stops: Iterable[str]) -> str:
    """`text` up to its first stop string (see the module's rule); the whole text if there is none."""
    cut = _first_stop(text, tuple(stops))
    return text if cut is None else text[:cut]


class StopFilter:
    """Filters a stream of text chunks: yields no stop string, no part of one, and nothing after it.

    For any chunking of a text, the texts returned by `push` and `finish` add up to
    `cut_at_stop(text, stops)`. A chunk's end is held back only while it could begin a stop string.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._prefixes = frozenset(stop[:length] for stop in self._stops for length in range(1, len(stop)))
        self._longest = max((len(stop) for stop in self._stops), default=1) - 1
        self._held = ""
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string was completed; the filter returns nothing any more."""
        return self._stopped

    def push(self, chunk: str) -> str:
        """Take the next chunk; return the text that is certain to belong to the answer."""
        if self._stopped:
            return ""
        text = self._held + chunk
        cut = _first_stop(text, self._stops)
        if cut is not None:
            self._stopped = True
            self._held = ""
            return text[:cut]
        keep = self._n_held(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """The stream is over: return what was held back (a beginning that no stop string followed)."""
        rest, self._held = self._held, ""
        return rest

    def _n_held(self, text: str) -> int:
        """Characters at the end of `text` that could begin a stop string."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[len(text) - length :] in self._prefixes:
                return length
        return 0


def _first_stop(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the first stop string to be completed begins."""
    # (end, begin): the smallest end wins, then the smallest begin.
    found = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return min(found)[1] if found else None
