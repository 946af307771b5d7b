from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.text import normalise


def test_normalise_examples() -> None:
    assert normalise("  What IS\tthis?\r\n") == "what is this?"
    assert normalise("ﬁnd\u00a0the Ｆull\u3000width") == "find the full width"
    assert normalise("STRASSE") == normalise("straße")
    assert normalise("Cafe\u0301") == normalise("CAFÉ")
    assert normalise("") == ""


def test_normalise_keeps_what_differs() -> None:
    assert normalise("1 + 1") != normalise("1 - 1")
    assert normalise("don't") != normalise("dont")


@settings(deadline=None)
@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_normalise_is_idempotent_on_every_character() -> None:
    characters = (chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    assert [c for c in characters if normalise(normalise(c)) != normalise(c)] == []


@settings(deadline=None)
@given(st.text(), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_normalise_ignores_the_unicode_form(text: str, form: str) -> None:
    assert normalise(unicodedata.normalize(form, text)) == normalise(text)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)), st.text(st.sampled_from(" \t\n\r"), min_size=1))
def test_normalise_of_ascii_is_case_and_spaces(text: str, space: str) -> None:
    assert normalise(text.upper().replace(" ", space)) == normalise(text)
    assert normalise(text) == " ".join(text.casefold().split())
