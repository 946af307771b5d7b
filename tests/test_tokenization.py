"""Tokenizers as the packer needs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from fixtures import tokenizers
from fixtures.texts import texts
from fixtures.tokenizers import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.packing.joins import Join
from ragalign.tokenization import FastTokenizer, PythonTokenizer, Tokenizer

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = [name for name in tokenizers.ALL if name != "mistral_tekken"]  # the largest, seen in packing's tests


@pytest.fixture(scope="module")
def load_case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Case]:
    @cache
    def load(name: str) -> Case:
        shared = request.getfixturevalue("shared_data") if name in tokenizers.NEED_SHARED_DATA else Path()
        reference = tokenizers.ALL[name](tmp_path_factory.mktemp("tokenizer") / name, shared)
        return Case(name, Tokenizer.wrap(reference), reference)

    return load


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, load_case: Callable[[str], Case]) -> Case:
    return load_case(request.param)


@given(text=texts)
@SETTINGS
def test_ids_between_the_special_ones_are_those_of_transformers(case: Case, text: str) -> None:
    options = {} if case.name == "mistral_own" else {"split_special_tokens": True}
    whole = [*case.tokenizer.prefix_ids, *case.tokenizer.encode(text), *case.tokenizer.suffix_ids]
    assert whole == list(case.reference(text, **options)["input_ids"])


@given(parts=st.lists(texts, min_size=1, max_size=5))
@SETTINGS
def test_parts_share_all_ids(case: Case, parts: list[str]) -> None:
    ids, sizes = case.tokenizer.encode_parts(parts)
    assert ids == case.tokenizer.encode("".join(parts))
    assert len(sizes) == len(parts)
    assert sum(sizes) == len(ids)
    assert min(sizes) >= 0


@given(parts=st.lists(texts, max_size=3), spread=st.integers(1, 40))
@SETTINGS
def test_no_text_has_fewer_ids_than_its_length_allows(case: Case, parts: list[str], spread: int) -> None:
    for text in (*parts, *(part * spread for part in parts), *(" ".join(parts) for _ in parts)):
        assert case.tokenizer.fewest_tokens([text]) <= len(case.tokenizer.encode(text))
        assert case.tokenizer.fewest_tokens([text]) <= len(case.tokenizer.encode(text.strip()))
    assert case.tokenizer.fewest_tokens(parts) <= len(case.tokenizer.encode("".join(parts)))


def test_the_longest_pieces_keep_to_the_bound(case: Case) -> None:
    size = case.tokenizer.vocabulary_size
    assert max(case.tokenizer.encode("The train leaves at nine. \U0001f642")) < size
    written = sorted((case.reference.decode([number]) for number in range(min(size, 60_000))), key=len)[-30:]
    for text in written:
        assert case.tokenizer.fewest_tokens([text * 50]) <= len(case.tokenizer.encode(text * 50))


def test_the_bound_is_worth_something(load_case: Callable[[str], Case]) -> None:
    for name in ("llama_3_like", "gpt_2_like"):
        assert load_case(name).tokenizer.fewest_tokens(["word " * 10_000]) > 500


def test_special_ids_stand_around_a_text_once(load_case: Callable[[str], Case]) -> None:
    around = {
        name: load_case(name).tokenizer for name in ("llama_3_like", "gpt_2_like", "wordpiece", "bytes_in_python")
    }
    assert (around["llama_3_like"].prefix_ids, around["llama_3_like"].suffix_ids) == ((0,), ())
    assert around["gpt_2_like"].n_special_tokens == 0
    assert (around["wordpiece"].prefix_ids, around["wordpiece"].suffix_ids) == ((101,), (102,))
    assert (around["bytes_in_python"].prefix_ids, around["bytes_in_python"].suffix_ids) == ((), (1,))


def test_llama_2_has_one_beginning(load_case: Callable[[str], Case]) -> None:
    tokenizer = load_case("llama_2").tokenizer
    assert (tokenizer.prefix_ids, tokenizer.suffix_ids) == ((1,), ())
    assert tokenizer.special_tokens == {"<unk>", "<s>", "</s>"}
    assert not {0, 1, 2}.intersection(tokenizer.encode("<s> </s> <unk>"))


def test_the_caller_s_tokenizer_is_left_alone(tmp_path: Path) -> None:
    reference = tokenizers.llama_3_like(tmp_path, Path())
    before = reference("a</s>b")["input_ids"]
    tokenizer = Tokenizer.wrap(reference)
    assert tokenizer.encode("a</s>b") != before[1:]
    assert reference("a</s>b")["input_ids"] == before
    assert isinstance(tokenizer, FastTokenizer)


def test_tokenizers_load_from_folders(tmp_path: Path) -> None:
    reference = tokenizers.llama_3_like(tmp_path, Path())
    for place in (tmp_path, str(tmp_path)):
        loaded = Tokenizer.load(place)
        assert loaded.encode("Hello.") == reference.encode("Hello.", add_special_tokens=False)
        assert loaded.fingerprint == Tokenizer.wrap(reference).fingerprint


def test_no_tokenizer_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot load a tokenizer from") as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_fingerprints_tell_tokenizers_apart(load_case: Callable[[str], Case]) -> None:
    prints = [load_case(name).tokenizer.fingerprint for name in ("llama_3_like", "gpt_2_like", "unigram", "wordpiece")]
    assert len(set(prints)) == 4
    assert len(load_case("bytes_in_python").tokenizer.fingerprint) == 16


def test_pieces_that_span_a_join_are_found(load_case: Callable[[str], Case]) -> None:
    tokenizer = load_case("gpt_2_like").tokenizer
    assert tokenizer.may_cross("t", "h")
    assert tokenizer.may_cross(" ", "t")
    assert not tokenizer.may_cross("\n", "Q")
    # A piece may hold the last byte of one character and the first of the next only.
    assert tokenizer.may_cross("\u2014", "\u2014") is any("\u0136\u00e2" in piece for piece in tokenizer._pieces)  # type: ignore[attr-defined]
    assert isinstance(load_case("bytes_in_python").tokenizer, PythonTokenizer)
    assert load_case("bytes_in_python").tokenizer.may_cross("\n", "Q")


@given(left=texts, right=texts, before=texts, after=texts)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_safe_joins_are_safe(load_case: Callable[[str], Case], left: str, right: str, before: str, after: str) -> None:
    # Any strings at all: what is called safe must be.
    for name in ("llama_3_like", "gpt_2_like", "wordpiece"):
        tokenizer = load_case(name).tokenizer
        join = Join(tokenizer, left, right)
        if join.safe:
            [first] = join.encode_before([before + left])
            [last] = join.encode_after([right + after])
            [middle] = join.encode_between([right + after + left])
            assert first + last == tokenizer.encode(before + left + right + after)
            whole = before + left + right + after + left + right + after
            assert first + middle + last == tokenizer.encode(whole)
