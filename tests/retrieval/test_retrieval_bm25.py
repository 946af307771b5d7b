from __future__ import annotations

import math
import re
from typing import Any

import pytest

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval import Bm25Retriever, make_retriever

# Lucene's list, which bm25s calls "english".
_STOPWORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was
will with
"""
STOPWORDS = set(_STOPWORDS.split())


def words(text: str, stopwords: set[str]) -> list[str]:
    return [word for word in re.findall(r"\w+", text.lower()) if word not in stopwords]


def oracle(query: str, texts: list[str], k1: float = 1.5, b: float = 0.75, stop: set[str] = STOPWORDS) -> list[float]:
    documents = [words(text, stop) for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(query, stop):
            df = sum(word in other for other in documents)
            if df == 0:
                continue
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            tf = document.count(word)
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


TEXTS = [
    "How do I sort a list in C?",
    "How do I sort a list in R?",
    "Write a poem about the sea, the sea, the sea.",
    "Explain how rainbows form",
    "Explain the sea to a child who has never seen the sea",
    "sort",
    "the of and",
]
QUERIES = ["sort sort list in C", "the sea", "Explain rainbows", "nothing here matches anything", "of the", "", "R"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, {}), ({"k1": 0.9, "b": 0.4}, {"k1": 0.9, "b": 0.4}), ({"stopwords": None}, {"stop": set()})],
)
def test_scores_are_the_formula_s(make_index: Any, options: dict[str, Any], expected: dict[str, Any]) -> None:
    index = make_index(TEXTS)
    for query, hits in zip(QUERIES, Bm25Retriever(index, **options).retrieve(QUERIES, len(TEXTS)), strict=True):
        scores = oracle(query, TEXTS, **expected)
        order = sorted(range(len(TEXTS)), key=lambda i: (-round(scores[i], 5), i))
        assert [index.pool.position(hit.id) for hit in hits] == order
        assert [hit.score for hit in hits] == pytest.approx([scores[i] for i in order], abs=1e-5)


def test_real_pool_against_the_formula(lima: Index) -> None:
    texts = lima.pool.instructions
    queries = ["How can I write a good cover letter?", "What is the difference between a virus and bacteria?"]
    for query, hits in zip(queries, Bm25Retriever(lima).retrieve(queries, 30), strict=True):
        scores = oracle(query.casefold(), [text.casefold() for text in texts])
        best = sorted(scores, reverse=True)[:30]
        assert [hit.score for hit in hits] == pytest.approx(best, rel=1e-4)
        assert all(hit.score == pytest.approx(scores[lima.pool.position(hit.id)], rel=1e-4) for hit in hits)


def test_text_form_is_the_index_s(make_index: Any) -> None:
    index = make_index(["first", "second", "third"], text="both")
    [hits] = Bm25Retriever(index).retrieve(["answer 1"], 1)
    assert hits[0].id == index.pool.ids[1]


def test_pool_without_any_word(make_index: Any) -> None:
    index = make_index(["?!", "...", "the"])
    [hits] = Bm25Retriever(index).retrieve(["the sea"], 5)
    assert [(hit.id, hit.score) for hit in hits] == [(name, 0.0) for name in index.pool.ids]


def test_case_width_and_spaces_do_not_matter(make_index: Any) -> None:
    retriever = Bm25Retriever(make_index(["Straße und Weg", "Ｆｕｌｌ width", "other"]))
    first, second, third = retriever.retrieve(["STRASSE", "full  WIDTH", "ＯＴＨＥＲ"], 1)
    assert [hits[0].id for hits in (first, second, third)] == retriever.pool.ids
    assert all(hits[0].score > 0 for hits in (first, second, third))


def test_it_prints_nothing(make_index: Any, capfd: pytest.CaptureFixture[str]) -> None:
    Bm25Retriever(make_index(TEXTS)).retrieve(QUERIES, 3)
    assert capfd.readouterr() == ("", "")


def test_options_are_checked(make_index: Any) -> None:
    index = make_index(TEXTS)
    with pytest.raises(ConfigError, match="bm25: b must be between 0 and 1"):
        make_retriever("bm25", index, b=2)
    with pytest.raises(ConfigError, match="bm25: k1 must be a number"):
        make_retriever("bm25", index, k1="high")
    with pytest.raises(ConfigError, match="bm25: stopwords: klingon"):
        make_retriever("bm25", index, stopwords="klingon")
    with pytest.raises(ConfigError, match="bm25: stopwords"):
        make_retriever("bm25", index, stopwords=3)


def test_stopwords_may_be_a_list_or_another_language(make_index: Any) -> None:
    index = make_index(["sort the list", "der Hund", "die Katze"])
    [hits] = make_retriever("bm25", index, stopwords=["sort"]).retrieve(["sort"], 1)
    assert hits[0].score == 0
    [hits] = make_retriever("bm25", index, stopwords="german").retrieve(["der die"], 1)
    assert hits[0].score == 0
