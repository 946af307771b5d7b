"""Items made in a thread ahead of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.generation.ahead import Ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "ragalign-ahead"]


def until_gone() -> None:
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == []


@given(items=st.lists(st.integers()), takes=st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=20))
@settings(max_examples=50, deadline=None)
def test_every_item_comes_once_and_in_order(items: list[int], takes: list[tuple[int, bool]]) -> None:
    for given_items in (items, iter(items)):
        with closing(Ahead(given_items)) as ahead:
            taken: list[int] = []
            for n, wait in takes:
                found = ahead.take(n, wait=wait)
                assert len(found) <= n
                taken += found
                assert len(found) == n or not wait or taken == items
            assert taken + ahead.take(len(items), wait=True) == items
            assert ahead.take(3, wait=True) == []


def test_a_sequence_needs_no_thread() -> None:
    with closing(Ahead([1, 2, 3])) as ahead:
        assert threads() == []
        assert ahead.take(2, wait=False) == [1, 2]


def test_what_is_not_ready_is_not_waited_for() -> None:
    go = threading.Event()

    def slow() -> Iterator[int]:
        yield 1
        go.wait()
        yield 2

    with closing(Ahead(slow())) as ahead:
        assert ahead.take(1, wait=True) == [1]
        assert ahead.take(2, wait=False) == []
        go.set()
        assert ahead.take(2, wait=True) == [2]
        assert ahead.take(2, wait=True) == []


def test_an_error_comes_after_the_items_and_only_to_those_who_wait() -> None:
    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise ValueError("no third")

    with closing(Ahead(broken())) as ahead:
        until_gone()
        assert ahead.take(5, wait=True) == [1, 2]
        assert ahead.take(5, wait=False) == []
        with pytest.raises(ValueError, match="no third"):
            ahead.take(5, wait=True)


def test_items_that_nobody_takes_are_not_made_without_end() -> None:
    made = 0

    def endless() -> Iterator[int]:
        nonlocal made
        while True:
            made += 1
            yield made

    ahead = Ahead(endless())
    until = time.monotonic() + 5
    while made < 1025 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert 1025 <= made <= 1026
    ahead.close()
    until_gone()
    assert made <= 1026


def test_closing_wakes_whoever_waits() -> None:
    go = threading.Event()

    def never() -> Iterator[int]:
        go.wait()
        yield 1

    ahead = Ahead(never())
    found: list[list[int]] = []
    waiting = threading.Thread(target=lambda: found.append(ahead.take(1, wait=True)))
    waiting.start()
    ahead.close()
    waiting.join(5)
    assert found == [[]]
    go.set()
    until_gone()
