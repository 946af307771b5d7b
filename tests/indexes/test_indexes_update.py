"""Adding and removing: the result equals a new build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fixtures.vectors import HashEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ragalign.errors import DataError, IndexMismatchError
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration

QUERIES = HashEncoder().encode([f"topic{i} asks" for i in range(8)])


def pool_of(numbers: list[int]) -> Pool:
    return Pool.from_demonstrations(Demonstration(f"topic{i % 20} question {i}", f"answer {i}") for i in numbers)


def assert_same(left: Index, right: Index) -> None:
    assert left.pool.ids == right.pool.ids
    np.testing.assert_array_equal(left.vectors, right.vectors)
    for one, other in zip(left.search(QUERIES, 7), right.search(QUERIES, 7), strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.lists(st.integers(0, 60), max_size=25), st.lists(st.integers(0, 60), max_size=25))
@settings(max_examples=40)
def test_adding_equals_building_from_both(first: list[int], second: list[int]) -> None:
    grown = Index.build(pool_of(first), HashEncoder()).add(pool_of(second))
    assert_same(grown, Index.build(pool_of(first).union(pool_of(second)), HashEncoder()))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_only_what_is_new_is_encoded(kind: str) -> None:
    encoder = HashEncoder()
    index = Index.build(pool_of(list(range(50))), encoder, kind=kind)
    assert encoder.n_encoded == 50
    grown = index.add(pool_of(list(range(40, 55))))
    assert encoder.n_encoded == 55
    assert grown.add(pool_of(list(range(55)))) is grown
    assert encoder.n_encoded == 55
    assert len(grown) == 55


def test_removing_by_id() -> None:
    index = Index.build(pool_of(list(range(30))), HashEncoder())
    gone = index.pool.ids[3:6]
    left = index.remove(gone)
    assert_same(left, Index.build(pool_of([0, 1, 2, *range(6, 30)]), HashEncoder()))
    with pytest.raises(DataError):
        left.remove(gone[:1])


def test_an_index_changed_by_others_is_not_overwritten(tmp_path: Path) -> None:
    Index.build(pool_of([1, 2, 3]), HashEncoder()).save(tmp_path / "i")
    mine, theirs = (Index.open(tmp_path / "i", encoder=HashEncoder()) for _ in range(2))
    theirs.add(pool_of([4])).save(tmp_path / "i")
    with pytest.raises(IndexMismatchError, match="changed by another process"):
        mine.add(pool_of([5])).save(tmp_path / "i")
    assert len(Index.open(tmp_path / "i")) == 4


def test_saving_and_opening_changes_nothing(tmp_path: Path) -> None:
    for kind in ("flat", "hnsw", "ivf"):
        built = Index.build(pool_of(list(range(120))), HashEncoder(), kind=kind)
        built.save(tmp_path / kind)
        opened = Index.open(tmp_path / kind)
        assert isinstance(opened.vectors, np.memmap)
        assert_same(built, opened)
        assert list(opened.pool) == list(built.pool)


class Updates(RuleBasedStateMachine):
    """Any series of additions and removals keeps the index what its pool says."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[int] = []
        self.index = Index.build(pool_of([]), HashEncoder())

    @rule(numbers=st.lists(st.integers(0, 30), max_size=6))
    def add(self, numbers: list[int]) -> None:
        self.index = self.index.add(pool_of(numbers))
        self.numbers += [number for number in dict.fromkeys(numbers) if number not in self.numbers]

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.numbers:
            number = data.draw(st.sampled_from(self.numbers))
            self.index = self.index.remove(pool_of([number]).ids)
            self.numbers.remove(number)

    @invariant()
    def is_what_building_gives(self) -> None:
        assert_same(self.index, Index.build(pool_of(self.numbers), HashEncoder()))


TestUpdates = Updates.TestCase
TestUpdates.settings = settings(max_examples=15, stateful_step_count=12)
