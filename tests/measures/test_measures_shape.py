"""Shape and similarity of answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.encoders import Encoder
from ragalign.measures.shape import length_ratio, repetition
from ragalign.measures.similarity import AnswerSimilarity


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b c", None), ("", None), ("a b c d", 0.0), ("a b c d e", 0.0), ("a a a a a", 0.5), ("a b c d a b c d", 0.2)],
)
def test_repetition_is_the_share_of_repeated_4_grams(text: str, expected: float | None) -> None:
    assert repetition(text) == (expected if expected is None else pytest.approx(expected))


@given(st.lists(st.sampled_from("ab"), min_size=4, max_size=60))
def test_repetition_counts_what_stood_before(words: list[str]) -> None:
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    for start in range(len(words) - 3):
        gram = tuple(words[start : start + 4])
        repeated += gram in seen
        seen.add(gram)
    assert repetition(" ".join(words)) == pytest.approx(repeated / (len(words) - 3))


def test_length_is_relative_to_the_references() -> None:
    assert length_ratio("a b c", ["a b", "a b c d"]) == 1
    assert length_ratio("", ["a"]) == 0
    assert length_ratio("a", []) is None
    assert length_ratio("a", [" "]) is None


def test_similarity_is_the_cosine_to_the_nearest_reference(minilm: Encoder) -> None:
    similarity = AnswerSimilarity(minilm)
    near, far = "The Nile is a river in Africa.", "Stir the soup for ten minutes."
    assert similarity(near, [near]) == pytest.approx(1, abs=1e-5)
    alone = similarity("A river of Africa is the Nile.", [far])
    both = similarity("A river of Africa is the Nile.", [far, near])
    assert alone < 0.4 < 0.8 < both
    one, other = minilm.encode(["A river of Africa is the Nile.", near])
    assert both == pytest.approx(float(one @ other), abs=1e-5)
