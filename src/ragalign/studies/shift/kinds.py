"""Kinds of shift and categories of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from ragalign._settings import read_toml
from ragalign.errors import ConfigError

Kind = Literal["unshifted", "marginal", "shifted"]
KINDS: tuple[Kind, ...] = ("unshifted", "marginal", "shifted")

FORMAT, CONTENT = "format", "content"
# English words and phrases of style rather than content, our own lists; the groups are those of Lin et al.
# 2023 (arXiv 2312.01552): safety, style, discourse. An earlier group wins if phrases overlap.
_WORDS: Mapping[str, str] = {
    "safety": r"""as an ai|language model|i (?:cannot|can not|can't|can’t|am unable to|am not able to|must not|won't)
        |(?:cannot|can't|unable to) (?:provide|assist|help|fulfil\w*|support|advise)|(?:i )?apologi[sz]e\w*|i'?m sorry
        |sorry|harm\w*|illegal\w*|unethical|ethical\w*|inappropriate|offensive|dangerous|safe(?:ty|ly)?|responsib\w+
        |respectful\w*|consent|privacy|discriminat\w+|(?:consult|seek) (?:a|an|professional)\b[\w ]{0,30}professional
        |professional (?:help|advice)|not a substitute|please note""",
    "stylistic": r"""sure|certainly|of course|absolutely|great (?:question|idea|choice)|good question|thank(?:s| you)
        |(?:i(?:'d| would|'m| am)|we are) (?:happy|glad|delighted|pleased|here) to|happy to help|feel free
        |let me (?:know|help|explain)|i hope (?:this|that|you)\b|hope this helps|here (?:is|are)|here's|welcome
        |please|wonderful|fantastic|excellent|fascinating|delightful|hello|hi there|dear""",
    "discourse": r"""however|therefore|moreover|furthermore|additionally|in addition|also|for (?:example|instance)
        |such as|in (?:conclusion|summary|short|general|other words|fact)|overall|finally|first(?:ly)?|second(?:ly)?
        |third(?:ly)?|next|then|because|since|although|while|instead|on the (?:one|other) hand|as a result|thus
        |hence|indeed|remember|keep in mind|it is (?:important|worth)|it's (?:important|worth)|ultimately|that said""",
}
DEFAULT_CATEGORIES: Mapping[str, Sequence[str]] = {
    name: (re.sub(r"\s*\n\s*", "", f"(?i)\\b(?:{words})\\b"),) for name, words in _WORDS.items()
}


def kind_of(rank: int) -> Kind:
    """Unshifted: the base model's first choice; marginal: its second or third; shifted: any other (Lin et al. 2023)."""
    return "unshifted" if rank == 1 else "marginal" if rank <= 3 else "shifted"


def load_categories(path: str | Path) -> dict[str, list[str]]:
    """Load categories from a TOML file: ``name = ["regular expression", ...]``, the most important first.

    Raises:
        ConfigError: the file has another form, or a regular expression is invalid.
    """
    table = read_toml(Path(path))
    for name, patterns in table.items():
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            raise ConfigError(f'{path}: {name!r} must be a list of regular expressions, such as ["\\\\bhowever\\\\b"]')
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{path}: {name!r}: {pattern!r} is not a valid regular expression: {error}") from None
    if not table:
        raise ConfigError(f"{path} has no categories")
    return table


def categorise(
    text: str, spans: Sequence[tuple[int, int]], categories: Mapping[str, Sequence[str]] = DEFAULT_CATEGORIES
) -> list[str]:
    """The category of each token of a text.

    A token belongs to the first category with a match that it overlaps; otherwise it is ``format`` if it has no
    letter or digit, else ``content``.

    Args:
        text: the answer.
        spans: the tokens' spans in characters.
        categories: regular expressions by name, the most important first.
    """
    owners = [""] * len(text)
    for name, patterns in reversed(list(categories.items())):
        for pattern in patterns:
            for match in re.finditer(pattern, text):
                owners[match.start() : match.end()] = [name] * (match.end() - match.start())
    found = []
    for start, end in spans:
        # A token's leading space does not count as part of the word.
        inside = [owner for owner, char in zip(owners[start:end], text[start:end], strict=True) if not char.isspace()]
        named = next(filter(None, inside), "")
        found.append(named or (CONTENT if any(char.isalnum() for char in text[start:end]) else FORMAT))
    return found
