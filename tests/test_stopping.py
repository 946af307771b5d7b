from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.stopping import StopFilter, cut_at_stop, merge_stops

# A tiny alphabet makes stop strings occur, overlap and almost occur.
TEXT = st.text(alphabet="ab🙂", max_size=30)
STOPS = st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=5), max_size=4)


def char_by_char(text: str, stops: list[str]) -> str:
    """The definition, spelled out: read one character at a time and end as soon as a stop string is complete."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


@given(TEXT, STOPS)
@example("abcd", ["abcd", "bc"])
@example("xab", ["b", "ab"])
@example("a# Quer", ["# Query"])
def test_cut_is_where_the_first_complete_stop_string_begins(text: str, stops: list[str]) -> None:
    assert cut_at_stop(text, stops) == char_by_char(text, stops)


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=8) | st.just(list(range(30))))
@example("ab", ["ab"], [1])
def test_filter_adds_up_to_the_cut_for_any_chunking(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = StopFilter(stops)
    out = ""
    for begin, end in itertools.pairwise(bounds):
        out += pieces.push(text[begin:end])
        # What is out can never have to be taken back, whatever follows.
        assert cut_at_stop(text, stops).startswith(out)
        assert pieces.stopped == (len(char_by_char(text[:end], stops)) < end)
    assert out + pieces.finish() == cut_at_stop(text, stops)


@given(TEXT, STOPS)
def test_filter_holds_back_only_what_could_begin_a_stop_string(text: str, stops: list[str]) -> None:
    pieces = StopFilter(stops)
    out = pieces.push(text)
    held = pieces.finish()
    assert out + held == cut_at_stop(text, stops)
    assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_comes_after_a_stop_string() -> None:
    pieces = StopFilter(["# Query"])
    assert [pieces.push(chunk) for chunk in ["Yes.\n# Q", "uery:\n", "more"]] == ["Yes.\n", "", ""]
    assert pieces.stopped
    assert pieces.finish() == ""


def test_merge_puts_longer_first_and_drops_duplicates() -> None:
    assert merge_stops(["b", "# Query"], ("b", "ab")) == ("# Query", "ab", "b")
    assert merge_stops() == ()


def test_merge_refuses_an_empty_stop_string() -> None:
    with pytest.raises(ConfigError, match="stop string is empty"):
        merge_stops(["a", ""])
