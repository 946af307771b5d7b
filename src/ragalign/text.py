"""The one definition of "same text", used to exclude demonstrations and to find duplicates."""

from __future__ import annotations

import unicodedata


def normalise(text: str) -> str:
    """Reduce ``text`` to what has to agree for two texts to count as the same.

    Compatibility characters are unified (Unicode NFKC), case is folded, every run of whitespace becomes
    one space, and the ends are stripped. Applying it twice changes nothing.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    # Folding case can leave a text that is no longer NFKC, and the other way round: Unicode 3.13, D146.
    folded = unicodedata.normalize("NFD", text).casefold()
    folded = unicodedata.normalize("NFKC", folded).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())
