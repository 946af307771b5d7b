from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.pool import Duplicate, Pool
from ragalign.pool.duplicates import near_duplicates
from ragalign.text import normalise
from ragalign.types import Demonstration


def pool_of(*instructions: str) -> Pool:
    return Pool.from_demonstrations(Demonstration(text, f"answer {i}") for i, text in enumerate(instructions))


def compare_all(texts: list[str], threshold: float) -> list[tuple[int, int, float]]:
    """The same definition, comparing every text with every kept one."""
    sets = [{text[at : at + 5] for at in range(max(len(text) - 4, 1))} for text in texts]
    kept: list[int] = []
    found = []
    for i, own in enumerate(sets):
        scores = [(len(own & sets[j]) / len(own | sets[j]), -j) for j in kept]
        score, j = max(scores, default=(0.0, 0))
        if score >= threshold:
            found.append((i, -j, score))
        else:
            kept.append(i)
    return found


words = st.lists(
    st.sampled_from(["the", "a", "cat", "dog", "sat", "ran", "on", "mats", "über", "東京", "🙂"]), max_size=12
)


@settings(max_examples=300, deadline=None)
@given(st.lists(words.map(" ".join), max_size=25, unique=True), st.floats(0.05, 1.0))
def test_near_duplicates_are_those_of_comparing_all(texts: list[str], threshold: float) -> None:
    assert list(near_duplicates(texts, threshold)) == compare_all(texts, threshold)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=12), max_size=25, unique=True),
    st.sampled_from([0.2, 1 / 3, 0.5, 0.75, 1.0]),
)
def test_thresholds_that_are_met_exactly_count(texts: list[str], threshold: float) -> None:
    assert list(near_duplicates(texts, threshold)) == compare_all(texts, threshold)


@pytest.mark.parametrize("threshold", [0.8, 0.5, 0.3])
def test_near_duplicates_of_real_instructions(shared_data, threshold: float) -> None:
    files = [shared_data / "pools" / name for name in ("lima_1k.jsonl", "alpaca_en_demo.json")]
    texts = [normalise(text) for text in Pool.load(files).deduplicate().instructions[800:1200]]
    generator = np.random.default_rng(0)
    for text in list(texts[::4]):
        parts = text.split()
        parts[generator.integers(len(parts))] = "changed"
        texts.append(" ".join(parts))
    texts = list(dict.fromkeys(texts))
    assert list(near_duplicates(texts, threshold)) == compare_all(texts, threshold)


def test_exact_duplicates_are_by_normalised_instruction() -> None:
    pool = pool_of("What is this?", "Other", "  what IS\nthis? ", "What is this", "WHAT IS THIS?")
    assert [(d.id, d.duplicate_of, d.similarity) for d in pool.duplicates()] == [
        (pool[2].id, pool[0].id, 1.0),
        (pool[4].id, pool[0].id, 1.0),
    ]
    assert list(pool.deduplicate()) == [pool[0], pool[1], pool[3]]


def test_near_duplicates_repeat_a_kept_one() -> None:
    text = "Explain in a few sentences how a bill becomes a law in the United States."
    pool = pool_of(
        text,
        "Name a river.",
        text.replace("few", "fow"),
        text.upper().replace("FEW", "FOW"),
        text.replace("law", "lew"),
    )
    duplicates = pool.duplicates(near=0.8)
    assert [d.id for d in duplicates] == [pool[2].id, pool[3].id, pool[4].id]
    assert {d.duplicate_of for d in duplicates} == {pool[0].id}
    assert all(0.8 <= d.similarity < 1 for d in duplicates)
    assert duplicates[0].similarity == duplicates[1].similarity
    assert list(pool.deduplicate(near=0.8)) == [pool[0], pool[1]]
    assert pool.duplicates(near=0.99) == (Duplicate(pool[3].id, pool[2].id, 1.0),)


@pytest.mark.parametrize("near", [0.0, -1.0, 1.5, float("nan")])
def test_a_similarity_outside_its_range(near: float) -> None:
    with pytest.raises(ConfigError, match="near must be above 0 and at most 1"):
        pool_of("q").deduplicate(near)


def test_pools_without_duplicates_and_without_anything() -> None:
    assert Pool.from_demonstrations([]).duplicates(near=0.5) == ()
    assert pool_of("a", "b").duplicates(near=0.5) == ()


def test_ten_thousand_take_seconds() -> None:
    """Random sentences with a common vocabulary, one in three a small change of an earlier one."""
    generator = np.random.default_rng(0)
    vocabulary = np.array(["".join(generator.choice(list("abcdefghijklmnop"), 5)) for _ in range(2000)])
    texts: list[str] = []
    for _ in range(10_000):
        parts = vocabulary[(generator.pareto(1.0, 30) * 20).astype(int) % 2000]
        if texts and generator.random() < 1 / 3:
            parts = np.array(texts[generator.integers(len(texts))].split())
            parts[generator.integers(len(parts))] = "changed"
        texts.append(" ".join(parts))
    start = time.process_time()
    found = list(near_duplicates(texts, 0.8))
    assert time.process_time() - start < 15
    assert 2500 < len(found) < 4500
