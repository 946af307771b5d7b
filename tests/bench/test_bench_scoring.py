"""Metrics of a user's own, with whatever they return or raise."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragalign.bench.measuring import UnscoredError
from ragalign.bench.scoring import make_scorer
from ragalign.errors import ConfigError

SOURCE = """
import numpy as np
def f32(record): return np.float32(0.5)
def i64(record): return np.int64(3)
def huge(record): return 10**400
def leaves(record): raise SystemExit(3)
def text(record): return "x" * 1000
def gen(record):
    yield 1
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "m.py"
    found.write_text(SOURCE)
    return found


@pytest.mark.parametrize(("name", "value"), [("f32", 0.5), ("i64", 3.0)])
def test_numbers_of_numpy_count(path: Path, name: str, value: float) -> None:
    assert make_scorer(f"{path}:{name}").score({}) == value


@pytest.mark.parametrize(
    ("name", "words"),
    [("huge", "no finite number: 1000"), ("leaves", "the metric failed: SystemExit: 3"), ("text", "no finite number")],
)
def test_what_gives_no_number_is_unscored(path: Path, name: str, words: str) -> None:
    with pytest.raises(UnscoredError, match=words) as raised:
        make_scorer(f"{path}:{name}").score({})
    assert len(str(raised.value)) < 120


def test_a_generator_is_no_metric(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"m\.py:gen is a generator; a metric takes one record"):
        make_scorer(f"{path}:gen")


def test_a_file_that_exits_does_not_end_the_command(path: Path) -> None:
    path.write_text("raise SystemExit(3)")
    with pytest.raises(ConfigError, match="does not run: SystemExit: 3"):
        make_scorer(f"{path}:score")
