"""Verifiable instructions: recorded verdicts come out, and what cannot be checked is never "not followed"."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("if_verifiable")

import langdetect
import nltk
from hypothesis import given
from hypothesis import strategies as st
from if_verifiable.common import get_loose_transformations

from ragalign.errors import ConfigError, DataError
from ragalign.measures import instructions
from ragalign.measures.instructions import InstructionChecker, InstructionPrompt, loose_variants


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def prompt(*names: str, text: str = "Say hello.", **arguments: Any) -> InstructionPrompt:
    return InstructionPrompt("1", text, names, tuple(dict(arguments) for _ in names))


@pytest.mark.parametrize(("benchmark", "recorded"), [("ifeval", "ifeval_gpt4"), ("ifbench", "ifbench")])
def test_every_recorded_verdict_comes_out(benchmark: str, recorded: str, shared_data: Path) -> None:
    checker = InstructionChecker(benchmark)
    rows = read(shared_data / "ifeval" / f"{benchmark}_prompts.jsonl")
    prompts = {row["prompt"]: InstructionPrompt.from_row(row) for row in rows}
    n = 0
    for row in read(shared_data / "ifeval" / f"{recorded}.recorded.jsonl"):
        found = checker.check(prompts[row["prompt"]], row["response"])
        assert [one.reason for one in found] == [""] * len(found), row["prompt"]
        assert [one.strict for one in found] == row["strict"], row["prompt"]
        assert [one.loose for one in found] == row["loose"], row["prompt"]
        n += len(found)
    assert n > 100


@given(st.text(alphabet="ab *\n", max_size=40))
def test_the_loose_variants_are_upstreams(answer: str) -> None:
    assert sorted(loose_variants(answer)) == sorted(get_loose_transformations(answer))
    assert loose_variants(answer)[0] == answer


def test_loose_forgives_what_strict_does_not() -> None:
    checker = InstructionChecker("ifeval")
    [found] = checker.check(prompt("punctuation:no_comma"), "Well, hello:\nno comma here")
    assert (found.strict, found.loose) == (False, True)


@pytest.mark.parametrize("answer", ["", "  \n "])
def test_an_empty_answer_follows_nothing(answer: str) -> None:
    [found] = InstructionChecker("ifeval").check(prompt("punctuation:no_comma"), answer)
    assert (found.strict, found.loose, found.is_scored) == (False, False, True)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (prompt("punctuation:no_such"), "no checker of this name"),
        # Upstream would draw a threshold at random.
        (prompt("length_constraints:number_words"), "the prompt gives no num_words, relation"),
        (prompt("keywords:existence", unknown=1), "the prompt gives no keywords"),
        (prompt("length_constraints:number_words", num_words=3, relation="about"), "the checker failed: ValueError"),
    ],
)
def test_what_cannot_be_checked_is_unscored(asked: InstructionPrompt, reason: str) -> None:
    [found] = InstructionChecker("ifeval").check(asked, "An answer of six words.")
    assert (found.strict, found.loose, found.is_scored) == (None, None, False)
    assert reason in found.reason


def test_missing_nltk_data_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instructions, "_CARRIERS", ())
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    asked = prompt("change_case:capital_word_frequency", capital_frequency=1, capital_relation="at least")
    [found] = InstructionChecker("ifeval").check(asked, "HELLO there")
    assert (found.strict, found.loose) == (None, None)
    assert "needs NLTK's punkt_tab: run python -m nltk.downloader punkt_tab" in found.reason
    # Where it needs none, it runs.
    [other] = InstructionChecker("ifeval").check(prompt("punctuation:no_comma"), "hello")
    assert other.strict is True


def test_nothing_is_downloaded_and_nothing_global_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("the network was asked"))
    random.seed(7)
    expected = random.random()
    random.seed(7)
    before = (list(nltk.data.path), langdetect.DetectorFactory.seed)
    asked = prompt("language:response_language", language="de")
    InstructionChecker("ifbench")
    checker = InstructionChecker("ifeval")
    first = checker.check(asked, "Guten Tag, das ist Deutsch.")
    assert first == checker.check(asked, "Guten Tag, das ist Deutsch."), "language detection is seeded"
    assert random.random() == expected
    assert (list(nltk.data.path), langdetect.DetectorFactory.seed) == before


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no text 'prompt'"),
        ({"prompt": "a", "instruction_id_list": []}, "instruction_id_list"),
        ({"prompt": "a", "instruction_id_list": ["b"], "kwargs": "c"}, "kwargs"),
        ({"prompt": "a", "instruction_id_list": ["b"], "kwargs": []}, "1 instructions, but 'kwargs' of 0"),
    ],
)
def test_rows_that_are_no_prompt_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        InstructionPrompt.from_row(row)


def test_unused_arguments_are_null_and_dropped() -> None:
    row = {"key": 5, "prompt": "a", "instruction_id_list": ["x:y", "z"], "kwargs": [{"n": 0, "m": None}, None]}
    assert InstructionPrompt.from_row(row) == InstructionPrompt("5", "a", ("x:y", "z"), ({"n": 0}, {}))


def test_other_benchmarks_are_refused() -> None:
    with pytest.raises(ConfigError, match="ifeval, ifbench"):
        InstructionChecker("mmlu")
