"""Streams take a number of steps that is linear in their text, whatever the text and the chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.steps import counted_steps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragalign import stopping
from ragalign.stopping import StopFilter
from ragalign.templates import Template, built_in, streaming, unescaping
from ragalign.templates.streaming import CleanStream

TEMPLATES = [*map(Template.load, built_in()), replace(Template.load("urial"), escape="none")]
# What attackers and broken models repeat: marks, beginnings of delimiters, fences, invisible and blank characters.
UNITS = (
    "\\", "\\a", "\\ ", "\\\u200b", "\\\n", "\\#", "#\\", "\\`", "`", "``", "```\n", "```\nx\n", "x`", "# ", "# Quer",
    "\nQuestion\\", "\n", " ", "\u200b", "a\u0301", "</", "<|", "<\\|", "\nUser", "a\\", "\\\u3164", "\ud83d", "word ",
)  # fmt: skip
SHORT, LONG = 300, 2400


def steps(monkeypatch: pytest.MonkeyPatch, template: Template, unit: str, n: int, size: int) -> int:
    text = (unit * n)[:n]
    with counted_steps(monkeypatch, streaming, unescaping, stopping) as counted:
        stream = CleanStream(template)
        for start in range(0, len(text), size):
            stream.push(text[start : start + size])
        stream.finish()
    return counted.n


def check(monkeypatch: pytest.MonkeyPatch, template: Template, unit: str, size: int) -> None:
    few, many = (steps(monkeypatch, template, unit, n, size) for n in (SHORT, LONG))
    # Eight times the text; a square would be 64 times the steps. What is set up once counts for the short text only.
    assert many <= 8 * 2.5 * few + 4000, f"{template.name}, {unit!r} in chunks of {size}: {few} then {many} steps"


@pytest.mark.parametrize(
    "template",
    [*TEMPLATES[-1:], Template.load("ica"), Template.load("urial")],
    ids=lambda template: f"{template.name}-{template.escape}",
)
@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_streams_of_one_unit_take_linear_time(monkeypatch: pytest.MonkeyPatch, template: Template, unit: str) -> None:
    check(monkeypatch, template, unit, 1)


@given(
    template=st.sampled_from(TEMPLATES),
    unit=st.one_of(
        st.lists(st.sampled_from(UNITS), min_size=1, max_size=4).map("".join), st.text(min_size=1, max_size=6)
    ),
    size=st.sampled_from([1, 2, 7, 100]),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_stream_takes_linear_time(
    monkeypatch: pytest.MonkeyPatch, template: Template, unit: str, size: int
) -> None:
    check(monkeypatch, template, unit, size)


@pytest.mark.parametrize("text", ["a", "ab", "\\", "\n"])
def test_one_long_stop_string_takes_linear_time(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def cost(n: int) -> int:
        with counted_steps(monkeypatch, stopping) as counted:
            pieces = StopFilter([text * n + "!", text * n + "?"])
            for _ in range(2 * n):
                pieces.push(text)
            pieces.finish()
        return counted.n

    assert cost(4000) <= 8 * 1.5 * cost(500)


def test_a_long_stop_string_takes_little_memory() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        pieces = StopFilter(["a" * 200_000])
        pieces.push("a" * 100_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
