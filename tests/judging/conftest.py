"""A cache of replies for the tests of judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ragalign.judging.cache import ReplyCache


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[ReplyCache]:
    with ReplyCache(tmp_path / "replies.sqlite") as opened:
        yield opened
