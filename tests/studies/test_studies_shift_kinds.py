"""Kinds of tokens, and tokens of different tokenizers that stand for the same characters."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.studies.shift.kinds import categorise, kind_of, load_categories
from ragalign.studies.shift.tokens import match, spans_of


def test_ranks_have_the_papers_names() -> None:
    assert [kind_of(rank) for rank in (1, 2, 3, 4, 32_000)] == [
        "unshifted",
        "marginal",
        "marginal",
        "shifted",
        "shifted",
    ]


def test_words_and_phrases_are_recognised_across_tokens() -> None:
    pieces = ["Sure", "!", " However", ",", " I", " can", "not", " help", " with", " bom", "bs", ".", "\n"]
    found = categorise("".join(pieces), spans_of(pieces))
    expected = ["stylistic", "format", "discourse", "format", "safety", "safety", "safety"]
    assert found == [*expected, "content", "content", "content", "content", "format", "format"]


def test_categories_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "kinds.toml"
    file.write_text('animal = ["otters?"]\nrest = ["."]\n')
    pieces = ["The", " ot", "ter", " swims"]
    assert categorise("".join(pieces), spans_of(pieces), load_categories(file)) == ["rest", "animal", "animal", "rest"]
    for content, message in (
        ('a = "x"', "list of regular"),
        ('a = ["("]', "not a valid regular expression"),
        ("", "no categories"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_categories(file)


@given(st.text(st.sampled_from("ab \n"), max_size=20), st.data())
def test_matching_is_exact(text: str, data: st.DataObject) -> None:
    def split() -> list[tuple[int, int]]:
        cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(text) - 1))))) if len(text) > 1 else []
        ends = [0, *cuts, len(text)]
        return list(pairwise(ends)) if text else []

    first, second = split(), split()
    found = match(text, first, second)
    assert match(text, first, first) == list(range(len(first)))
    used = [one for one in found if one is not None]
    assert len(used) == len(set(used))
    for (start, end), place in zip(first, found, strict=True):
        if place is not None:
            other = text[slice(*second[place])]
            assert text[start:end].strip() == other.strip()
        elif text[start:end].strip():
            assert (start, end) not in second
