"""Splitting texts in any script into words, for lexical retrieval."""

from __future__ import annotations

from itertools import pairwise

import regex

from ragalign.text import normalise

# Letters and marks of scripts without spaces between words. Script extensions include marks that several scripts
# share, such as the Japanese long-vowel mark; \w excludes punctuation.
_SCRIPTS = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue"),
    *("Tai_Tham", "Tai_Viet", "Ahom", "Javanese", "Balinese"),
)
_UNSPACED = r"(?:[[\w--\p{M}]&&[" + "".join(rf"\p{{scx={script}}}" for script in _SCRIPTS) + r"]]\p{M}*)"
_LETTER = regex.compile(rf"(?V1){_UNSPACED}")
# The flag `w` gives \b the default word boundaries of Unicode (UAX 29).
_TOKEN = regex.compile(rf"(?V1w)(?P<unspaced>{_UNSPACED}+)|[\w--\p{{M}}].*?\b")


def words(text: str) -> list[str]:
    """The words of a text, normalised (`ragalign.text.normalise`), in order and with repetitions.

    Words end at the default word boundaries of UAX 29, which keep marks with their letters. Scripts without spaces
    between words (Han, kana, Thai, Lao, Khmer, Myanmar and others) give overlapping pairs of letters, or a single
    letter without neighbours. Single characters count, since a question can be about "C" or "R". A possessive 's is
    removed, as in Lucene's English analyser.
    """
    found: list[str] = []
    for match in _TOKEN.finditer(normalise(text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        token = match[0]
        if match["unspaced"] is None:
            found.append(token.removesuffix("'s"))
            continue
        letters = _LETTER.findall(token)
        found += [first + second for first, second in pairwise(letters)] if len(letters) > 1 else letters
    return found
