"""Gains are what a plain loop finds, for the right candidates, and survive interruptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.generation import TransformersGenerator
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.tokenization import Tokenizer
from ragalign.types import Query, Turn
from ragalign.utility import (
    AnsweredQuestion,
    GainFiles,
    GainRun,
    ScoreOptions,
    pool_questions,
    query_questions,
    score_gains,
)
from ragalign.utility.candidates import choose_candidates


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain_gain(
    model: Any, tokenizer: Any, index: Index, question: AnsweredQuestion, candidate: str, n: int | None
) -> tuple[float, int]:
    """One text at a time, written out by hand in the form of the recipe `ica`, summed over the reference."""
    import torch

    shown = index.pool.get(candidate)
    ask = f"Question: {question.query.text}\n\nHere’s an example answer:"
    one = f"Question: {shown.instruction}\n\nHere’s an example answer: {shown.response}\n\n"
    sums = []
    for prompt in (one + ask, ask):
        before = tokenizer(prompt)["input_ids"]
        whole = tokenizer(f"{prompt} {question.reference}")["input_ids"]
        assert whole[: len(before)] == before
        whole = whole[: None if n is None else len(before) + n]
        with torch.inference_mode():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(float(logprobs[at - 1, whole[at]]) for at in range(len(before), len(whole))))
    return sums[0] - sums[1], len(whole) - len(before)


@pytest.mark.parametrize("limit", [None, 5])
def test_gains_are_those_of_a_plain_loop(
    limit: int | None,
    starter: Index,
    engine: TransformersGenerator,
    tokenizer: Tokenizer,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(tiny_model)
    questions = pool_questions(starter.pool, 2)
    files = score_gains(
        starter, questions, engine, tmp_path / "gains.jsonl",
        tokenizer=tokenizer, options=ScoreOptions(candidates=4, max_reference_tokens=limit),
    )  # fmt: skip
    rows = read(tmp_path / "gains.jsonl")
    assert files.path == tmp_path / "gains.jsonl"
    assert len(rows) == 8
    asked = {question.id: question for question in questions}
    for row in rows:
        assert set(row) == {"id", "candidate", "gain", "n_tokens"}
        gain, n_tokens = plain_gain(plain, words, starter, asked[row["id"]], row["candidate"], limit)
        assert row["n_tokens"] == n_tokens
        assert row["gain"] == pytest.approx(gain, abs=1e-3)
    assert any(abs(row["gain"]) > 0.01 for row in rows)


def test_a_questions_own_pair_is_not_its_candidate(starter: Index) -> None:
    pool = starter.pool
    same = [Query("other id", (Turn("user", pool[0].instruction.upper()),))]
    queries = [question.query for question in pool_questions(pool, 10)]
    found = choose_candidates(starter, [*queries, *same], len(pool), accepts=lambda _: True)
    for query, names in zip(queries, found, strict=False):
        assert query.id not in names
        assert len(names) >= len(pool) - 3
    assert pool[0].id not in found[-1]


def test_candidates_are_near_middling_and_random(starter: Index) -> None:
    queries = [question.query for question in pool_questions(starter.pool, 5)]
    found = choose_candidates(starter, queries, 8, accepts=lambda _: True)
    vectors = starter.vectors
    for query, names in zip(queries, found, strict=True):
        assert list(names.values()) == ["near"] * 4 + ["middling"] * 2 + ["random"] * 2
        at = starter.pool.position(query.id)
        nearest = [starter.pool.ids[place] for place in np.argsort(-(vectors @ vectors[at]), kind="stable")]
        assert list(names)[:4] == [name for name in nearest if name != query.id][:4]
    # Neither other questions nor their order matter, and the seed does.
    [alone] = choose_candidates(starter, queries[3:4], 8, accepts=lambda _: True)
    assert alone == found[3]
    assert choose_candidates(starter, queries, 8, seed=1, accepts=lambda _: True) != found
    # What cannot be shown is replaced.
    few = choose_candidates(starter, queries, 8, accepts=lambda one: len(one.response) < 1000)
    assert all(len(starter.pool.get(name).response) < 1000 for names in few for name in names)
    assert {len(names) for names in few} == {8}
    with pytest.raises(ConfigError, match="candidates must be at least 1"):
        choose_candidates(starter, queries, 0, accepts=lambda _: True)


def test_an_interrupted_run_resumes(
    starter: Index, engine: TransformersGenerator, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    questions = pool_questions(starter.pool, 3)

    def run(out: Path, stop_after: int | None = None, options: ScoreOptions | None = None) -> GainRun:
        made = GainRun(
            starter, questions, out, recipe=Recipe.load("ica"), tokenizer=tokenizer, settings={"model": "tiny"},
            options=options or ScoreOptions(candidates=4),
        )  # fmt: skip
        seen = []

        def count(n: int) -> None:
            seen.append(n)
            if len(seen) == stop_after:
                raise KeyboardInterrupt

        if stop_after is None:
            made.run(lambda: engine, on_pairs=count)
        else:
            with pytest.raises(KeyboardInterrupt):
                made.run(lambda: engine, on_pairs=count)
        return made

    whole = run(tmp_path / "whole")
    assert (whole.n_pairs, whole.n_missing) == (12, 0)
    assert run(tmp_path / "parts", stop_after=5).n_missing == 7
    path = GainFiles(tmp_path / "parts").path
    assert path == tmp_path / "parts" / "gains.jsonl"
    path.write_bytes(path.read_bytes()[:-9])  # killed while writing
    assert run(tmp_path / "parts").n_missing == 0

    def gains(out: str) -> dict[tuple[str, str], float]:
        return {(row["id"], row["candidate"]): row["gain"] for row in read(GainFiles(tmp_path / out).path)}

    assert gains("parts").keys() == gains("whole").keys()
    for key, gain in gains("whole").items():
        assert gains("parts")[key] == pytest.approx(gain, abs=1e-3)
    # A finished run starts no engine, and other settings are refused.
    before = path.read_bytes()
    again = GainRun(
        starter, questions, tmp_path / "parts", recipe=Recipe.load("ica"), tokenizer=tokenizer,
        settings={"model": "tiny"}, options=ScoreOptions(candidates=4),
    )  # fmt: skip
    again.run(lambda: pytest.fail("the engine started"))
    assert again.summary()["gain_per_token"]["near"]["n"] == 6
    with pytest.raises(ConfigError, match="candidates"):
        run(tmp_path / "parts", options=ScoreOptions(candidates=5))
    path.with_name("gains.jsonl.run.json").unlink()
    with pytest.raises(DataError, match=r"no gains\.jsonl\.run\.json"):
        run(tmp_path / "parts")
    assert path.read_bytes() == before


def test_what_cannot_be_measured_is_said(
    starter: Index, engine: TransformersGenerator, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    long = AnsweredQuestion(Query("long", (Turn("user", "Count."),)), "word " * 3000)
    fits = AnsweredQuestion(Query("fits", (Turn("user", "Count."),)), "One, two.")
    made = GainRun(
        starter, [long, fits], tmp_path, recipe=Recipe.load("ica"), tokenizer=tokenizer, settings={},
        options=ScoreOptions(candidates=2),
    )  # fmt: skip
    made.run(lambda: engine)
    rows = {(row["id"], row["gain"] is None) for row in read(made.files.path)}
    assert rows == {("long", True), ("fits", False)}
    assert made.summary()["n_unmeasured"] == 2
    assert "tokens" in made.summary()["reason"]
    assert {gain.question for gain in GainFiles(tmp_path).read().gains} == {"fits"}
    with pytest.raises(ConfigError, match="no question has a reference"):
        GainRun(starter, [], tmp_path, recipe=Recipe.load("ica"), tokenizer=tokenizer, settings={})
    with pytest.raises(DataError, match="same id"):
        GainRun(starter, [fits, fits], tmp_path, recipe=Recipe.load("ica"), tokenizer=tokenizer, settings={})


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no measured gains"):
        GainFiles(tmp_path).read()
    files = GainFiles(tmp_path / "g.jsonl")
    files.path.write_text('{"id": "a", "candidate": "b", "gain": 1.5, "n_tokens": 3}\n')
    with pytest.raises(DataError, match=r"g\.questions\.jsonl is missing"):
        files.read()
    files.write_texts({"a": "Why?"}, Pool.from_demonstrations([]))
    with pytest.raises(DataError, match="whose text is missing"):
        files.read()
    files.path.write_text('{"id": "a", "candidate": "b", "gain": "much", "n_tokens": 3}\n')
    with pytest.raises(DataError, match="line 1 is not a measured gain"):
        files.read()
    files.path.write_text('{"id": "a", "candidate": "b", "gain": null, "n_tokens": 0}\n')
    with pytest.raises(DataError, match="no measured gain yet"):
        files.read()


def test_references_come_from_the_usual_fields() -> None:
    def asked(**metadata: Any) -> Query:
        return Query(str(metadata), (Turn("user", "Why?"),), metadata)

    queries = [asked(reference="a"), asked(reference=["b", "c"]), asked(output="d"), asked(response="e"), asked(x="f")]
    found, n_without = query_questions(queries)
    assert [question.reference for question in found] == ["a", "b", "d", "e"]
    assert n_without == 1
