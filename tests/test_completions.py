"""Files of completions with a real model: resumed exactly, and never mixed with anything else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ragalign import Aligner, Index
from ragalign.completions import CompletionFile, CompletionReport, generation_settings
from ragalign.errors import BudgetError, ConfigError, DataError
from ragalign.generation import TransformersGenerator
from ragalign.recipes import Recipe
from ragalign.types import Decoding, Query, Turn

SHORT = Decoding(temperature=0.0, max_tokens=6)


def query(number: int, text: str, *before: str) -> Query:
    turns = [Turn("user" if place % 2 == 0 else "assistant", one) for place, one in enumerate((*before, text))]
    return Query(f"q{number}", tuple(turns))


QUERIES = [query(n, text) for n, text in enumerate(("Why is the sky blue?", "How do I bake bread?", "Say hello."))]


@pytest.fixture(scope="module")
def index(starter_index: Path) -> Index:
    return Index.open(starter_index)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> TransformersGenerator:
    return TransformersGenerator(tiny_model, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def aligner(index: Index, tiny_model: Path, engine: TransformersGenerator) -> Aligner:
    return Aligner.from_recipe(
        replace(Recipe.load("ica"), decoding=SHORT), index=index, model=engine, tokenizer=tiny_model
    )


@pytest.fixture(scope="module")
def settings(index: Index) -> dict[str, Any]:
    return generation_settings(Recipe.load("ica"), SHORT, "tiny", index)


def answer(aligner: Aligner, queries: Sequence[Query], path: Path, settings: dict[str, Any]) -> CompletionReport:
    with CompletionFile(path, queries, settings) as file:
        return file.generate(aligner)


def test_every_query_gets_one_line(aligner: Aligner, settings: dict[str, Any], tmp_path: Path) -> None:
    report = answer(aligner, QUERIES, tmp_path / "new" / "out.jsonl", settings)
    lines = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == ["q0", "q1", "q2"]
    assert (report.n_written, report.n_present, report.failures) == (3, 0, ())
    assert {line["recipe"] for line in lines} == {"ica"}


def test_a_run_is_resumed_where_it_stopped(aligner: Aligner, settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer(aligner, QUERIES[:2], path, settings)
    before = path.read_bytes()
    with path.open("ab") as file:
        file.write(b'{"id": "q2", "resp')  # killed while writing
    report = answer(aligner, QUERIES, path, settings)
    assert (report.n_written, report.n_present) == (1, 2)
    assert path.read_bytes().startswith(before)
    assert len(path.read_text().splitlines()) == 3
    whole = path.read_bytes()
    with CompletionFile(path, QUERIES[1:], settings) as opened:
        assert (opened.missing, opened.n_present) == ([], 2)
    assert path.read_bytes() == whole


def refused(
    path: Path, queries: Sequence[Query], settings: dict[str, Any], match: str, kind: Any = ConfigError
) -> None:
    before = path.read_bytes()
    with pytest.raises(kind, match=match):
        CompletionFile(path, queries, settings)
    assert path.read_bytes() == before


def test_other_settings_are_not_mixed(
    aligner: Aligner, settings: dict[str, Any], index: Index, minilm_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    answer(aligner, QUERIES, path, settings)
    ica = Recipe.load("ica")

    def of(recipe: Recipe = ica, decoding: Decoding = SHORT, model: str = "tiny", given: Index = index) -> Any:
        return generation_settings(recipe, decoding, model, given)

    refused(path, QUERIES, of(decoding=replace(SHORT, temperature=0.7)), r"decoding\.temperature was 0\.0 and is 0\.7")
    refused(path, QUERIES, of(decoding=replace(SHORT, stop=("\n",))), r"decoding\.stop was \[\] and is")
    refused(path, QUERIES, of(model="other"), r'model was "tiny" and is "other"')
    refused(path, QUERIES, of(replace(ica, name="mine")), r'recipe\.name was "ica" and is "mine"')
    refused(path, QUERIES, of(replace(ica, packing=replace(ica.packing, max_tokens=99))), r"packing\.max_tokens was")
    planner = replace(ica.planner, strategy="reorder")
    refused(path, QUERIES, of(replace(ica, planner=planner)), r"recipe\.planner\.strategy was")
    fewer = index.remove(index.pool.ids[:1])
    refused(path, QUERIES, of(given=fewer), r"index\.pool was")
    refused(path, QUERIES, {**of(), "backend": "x"}, r'backend was not set and is "x"')


def test_an_edited_recipe_of_the_same_name_is_another(tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be kind.")
    (tmp_path / "mine.toml").write_text('[template]\nform = "urial"\nsystem_file = "system.txt"\n')
    first = generation_settings(Recipe.load(tmp_path / "mine.toml"), SHORT, "tiny")
    assert generation_settings(Recipe.load(tmp_path / "mine.toml"), SHORT, "tiny") == first
    (tmp_path / "system.txt").write_text("Be rude.")
    second = generation_settings(Recipe.load(tmp_path / "mine.toml"), SHORT, "tiny")
    assert second["recipe"]["template"].pop("preamble") != first["recipe"]["template"].pop("preamble")
    assert second == first


def test_another_question_under_the_same_id_is_not_answered(
    aligner: Aligner, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    answer(aligner, QUERIES, path, settings)
    changed = [QUERIES[0], query(1, "How do I bake a cake?"), QUERIES[2]]
    refused(path, changed, settings, "line 2: the query 'q1' was 'How do I bake bread.' and is 'How do I", DataError)
    later = [query(0, "Why is the sky blue?", "Hello!", "Hi.")]
    refused(path, later, settings, "line 1: the query 'q0' was asked after other turns", DataError)
    refused(path, [QUERIES[0], query(0, "And now?")], settings, "two queries have the id 'q0'", DataError)
    doubled = path.read_bytes()
    path.write_bytes(doubled + doubled)
    refused(path, QUERIES, settings, "line 4: answers 'q0' a second time \\(first in line 1\\)", DataError)


@pytest.mark.parametrize("content", [b"my notes\n", b'{"my":"notes"}', b'{"id": "1", "response": "a"}\n'])
def test_a_foreign_file_is_left_alone(settings: dict[str, Any], tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    refused(path, QUERIES, settings, r"notes\.txt: line 1.* was not written by this command", DataError)
    assert list(tmp_path.iterdir()) == [path]


def test_a_query_that_does_not_fit_loses_nothing_else(
    aligner: Aligner, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "out.jsonl"
    report = answer(aligner, [QUERIES[0], query(9, "word " * 5000), QUERIES[1]], path, settings)
    assert report.n_written == 2
    [failure] = report.failures
    assert failure.query.id == "q9"
    assert isinstance(failure.error, BudgetError)
    assert "by " in str(failure.error)
    report = answer(aligner, [QUERIES[0], QUERIES[1], QUERIES[2]], path, settings)
    assert (report.n_written, report.n_present) == (1, 2)
