"""Small pools and indexes whose vectors cost nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from fixtures.vectors import HashEncoder

from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration

PoolMaker = Callable[..., Pool]


def make_pool(n: int, start: int = 0) -> Pool:
    """Demonstrations `start` to `start + n`, in twenty topics."""
    return Pool.from_demonstrations(
        Demonstration(f"topic{i % 20} question {i}", f"answer {i}", source_id=f"row-{i}")
        for i in range(start, start + n)
    )


@pytest.fixture
def pool_of() -> PoolMaker:
    return make_pool


@pytest.fixture
def small() -> Index:
    return Index.build(make_pool(40), HashEncoder())
