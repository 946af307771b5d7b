from __future__ import annotations

import math
import unicodedata
from typing import Any

import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st
from uniseg import wordbreak

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.retrieval import Bm25Retriever, make_retriever
from ragalign.retrieval.words import words as split_words
from ragalign.text import normalise

# Lucene's list, which bm25s calls "english".
_STOPWORDS = """
a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to was
will with
"""
STOPWORDS = set(_STOPWORDS.split())


def words(text: str, stopwords: set[str]) -> list[str]:
    """Words by another implementation of UAX 29, but for scripts without spaces."""
    found = split_words(text) if LETTERS_WITHOUT_SPACES.search(text) else unicode_words(normalise(text))
    return [word for word in found if word not in stopwords]


def unicode_words(text: str) -> list[str]:
    straight = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return [word.removesuffix("'s") for word in wordbreak.words(straight) if LETTER.search(word)]


LETTER = regex.compile(r"(?V1)[\w--\p{M}]")
LETTERS_WITHOUT_SPACES = regex.compile(
    r"[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}\p{lb=SA}"
    r"\p{scx=Bopomofo}\p{scx=Yi}\p{scx=Javanese}\p{scx=Balinese}]"
)


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
        order = sorted((i for i in range(len(TEXTS)) if scores[i]), key=lambda i: (-round(scores[i], 5), i))
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
    assert Bm25Retriever(make_index(["?!", "...", "the"])).retrieve(["the sea"], 5) == [[]]


@given(st.text(st.one_of(st.sampled_from("aB1_.,:;'’ -\u0301\u200dеאक्"), st.characters(codec="utf-8"))))
def test_words_end_where_unicode_says(text: str) -> None:
    """Against another implementation, for all that is in no script without spaces."""
    text = normalise(text)
    assume(not LETTERS_WITHOUT_SPACES.search(text))
    assert split_words(text) == unicode_words(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("किताब की बात", ["किताब", "की", "बात"]),
        ("can't stop Newton’s example.com 3.5 C++", ["can't", "stop", "newton", "example.com", "3.5", "c"]),
        ("機械学習のmodel、猫。", ["機械", "械学", "学習", "習の", "model", "猫"]),
        ("データ", ["デー", "ータ"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("ที่นี่", ["ที่นี่"]),
        ("ភាសា", ["ភាសា"]),
        ("မြန်မာ", ["မြန်", "န်မာ"]),
        ("ພາສາ", ["ພາ", "າສ", "ສາ"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("ㄅㄆㄇ", ["ㄅㄆ", "ㄆㄇ"]),
        ("ꀀꀁꀂ", ["ꀀꀁ", "ꀁꀂ"]),
        ("ꦧꦱꦗꦮ", ["ꦧꦱ", "ꦱꦗ", "ꦗꦮ"]),
        ("ᬪᬵᬱᬩᬮᬶ", ["ᬪᬵᬱ", "ᬱᬩ", "ᬩᬮᬶ"]),
        ("e\u0301tat", ["état"]),
        ("", []),
    ],
)
def test_words_of_many_scripts(text: str, expected: list[str]) -> None:
    assert split_words(text) == [unicodedata.normalize("NFKC", word) for word in expected]


@pytest.mark.parametrize(
    ("texts", "query", "expected"),
    [
        (["की बात", "किताब पढ़ो"], "किताब", [1]),
        (["今天天气很好", "我喜欢机器学习", "猫在睡觉"], "什么是机器学习？", [1]),
        (["東京の天気", "データの分析", "猫が好きです"], "データを分析する", [1]),
        (["วันนี้อากาศดี", "ฉันชอบแมว"], "แมว", [1]),
        (["今天天气很好", "我喜欢机器学习"], "狗", []),
    ],
)
def test_scripts_without_spaces_are_searched(
    make_index: Any, texts: list[str], query: str, expected: list[int]
) -> None:
    index = make_index(texts)
    [hits] = Bm25Retriever(index).retrieve([query], 5)
    assert [index.pool.position(hit.id) for hit in hits] == expected
    assert all(hit.score > 0 for hit in hits)


@pytest.mark.parametrize("name", ["bm25", "hybrid"])
def test_questions_without_a_hit_are_counted_once(make_index: Any, name: str, caplog: pytest.LogCaptureFixture) -> None:
    index = make_index(["sort a list", "the sea", "write a poem"])
    found = make_retriever(name, index).retrieve(["zebra", "poem", "giraffe"], 2)
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("ragalign")]
    if name == "hybrid":
        assert [len(hits) for hits in found] == [2, 2, 2]
        assert messages == []
    else:
        assert [len(hits) for hits in found] == [0, 1, 0]
        assert messages == ["bm25: 2 of 3 questions have no hit: no allowed demonstration shares a word with them"]


@pytest.mark.parametrize("name", ["mmr", "dpp"])
def test_later_stages_take_what_there_is(make_index: Any, name: str) -> None:
    index = make_index(["sort a list", "the sea", "write a poem"])
    found = make_retriever(name, index, first="bm25").retrieve(["zebra", "poem", "write a list"], 3)
    assert [len(hits) for hits in found] == [0, 1, 2]


def test_case_width_and_spaces_do_not_matter(make_index: Any) -> None:
    retriever = Bm25Retriever(make_index(["Straße und Weg", "Ｆｕｌｌ width", "other"]))
    first, second, third = retriever.retrieve(["STRASSE", "full  WIDTH", "ＯＴＨＥＲ"], 1)
    assert [hits[0].id for hits in (first, second, third)] == retriever.pool.ids
    assert all(hits[0].score > 0 for hits in (first, second, third))


def test_it_prints_nothing(make_index: Any, capfd: pytest.CaptureFixture[str]) -> None:
    # Questions without a hit would be a warning, which the command shows on stderr.
    results = Bm25Retriever(make_index(TEXTS)).retrieve(["sort a list", "the sea", "Explain rainbows", "R"], 3)
    assert all(results)
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
    assert hits == []
    [hits] = make_retriever("bm25", index, stopwords="german").retrieve(["der die"], 1)
    assert hits == []
