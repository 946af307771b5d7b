"""Progress where there is no terminal: a plain line a minute, and nothing for short work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign import _progress
from ragalign._progress import PlainProgress, progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = PlainProgress("generating", 1000, "queries", clock=clock)
    for _ in range(200):
        clock.now += 1
        shown.advance(5)
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == [
        "generating: 300 of 1,000 queries (30%), about 2 min left",
        "generating: 600 of 1,000 queries (60%), about 1 min left",
        "generating: 900 of 1,000 queries (90%), about 20 s left",
    ]


def test_what_existed_and_a_warm_up_do_not_count_as_speed(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = PlainProgress("keeping", 1000, "pieces", clock=clock)
    clock.now += 70
    shown.advance(500)
    for _ in range(60):
        clock.now += 1
        shown.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "keeping: 500 of 1,000 pieces (50%)",
        "keeping: 560 of 1,000 pieces (56%), about 7 min left",
    ]


def test_without_a_total_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    shown = PlainProgress("reading", None, "rows", clock=clock)
    clock.now += 7500
    shown.advance(1234)
    assert capsys.readouterr().err == "reading: 1,234 rows after 2 h 5 min\n"


@given(st.lists(st.tuples(st.floats(0, 200), st.integers(0, 50)), max_size=40))
def test_never_more_than_a_line_a_minute(steps: list[tuple[float, int]]) -> None:
    clock, n_lines = Clock(), 0
    shown = PlainProgress("working", 10_000, "", clock=clock)
    with pytest.MonkeyPatch.context() as patch:
        written: list[str] = []
        patch.setattr("builtins.print", lambda line, **_: written.append(line))
        for seconds, done in steps:
            clock.now += seconds
            shown.advance(done)
        n_lines = len(written)
    assert n_lines <= (clock.now - 1000) / _progress.INTERVAL_S
    assert all("\n" not in line and "\x1b" not in line for line in written)


def test_short_work_and_quiet_work_say_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("working", 10, "rows") as advance:
        advance(10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(_progress, "INTERVAL_S", 0.0)
    with progress("working", 10, "rows") as advance:
        advance(10)
    assert capsys.readouterr().err == "working: 10 of 10 rows (100%)\n"
    token = _progress.silent.set(True)
    try:
        with progress("working", 10, "rows") as advance:
            advance(10)
    finally:
        _progress.silent.reset(token)
    assert capsys.readouterr().err == ""
