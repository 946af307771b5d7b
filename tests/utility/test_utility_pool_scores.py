"""Scores of a pool are those of plain loops, and selecting keeps what it says."""

from __future__ import annotations

import math
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
from ragalign.types import Demonstration
from ragalign.utility import PromptForm, pool_questions
from ragalign.utility.pool_scores import (
    ResponseScorer,
    lengths,
    measure_scores,
    measure_utilities,
    scores_of,
    select,
    with_scores,
)


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def loss(prompt: str, answer: str) -> list[float]:
        before, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + answer)["input_ids"]
        with torch.inference_mode():
            logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return [-float(logprobs[at - 1, whole[at]]) for at in range(len(before), len(whole))]

    return loss


def asking(one: Demonstration) -> str:
    return f"Question: {one.instruction}\n\nHere’s an example answer:"


def test_perplexity_and_ifd_are_those_of_a_plain_loop(
    plain: Any, engine: TransformersGenerator, tokenizer: Tokenizer, starter: Index, tmp_path: Path
) -> None:
    pool = starter.pool[:5]
    scorer = ResponseScorer(Recipe.load("ica"), tokenizer, engine)
    perplexity = measure_scores(pool, "perplexity", scorer, tmp_path / "p.jsonl", {"rule": "perplexity"})
    ifd = measure_scores(pool, "ifd", scorer, tmp_path / "i.jsonl", {"rule": "ifd"})
    for one in pool:
        given = np.mean(plain(asking(one), f" {one.response}"))
        alone = np.mean(plain("", f" {one.response}"))
        assert perplexity[one.id] == pytest.approx(math.exp(given), rel=1e-3)
        assert ifd[one.id] == pytest.approx(math.exp(given - alone), rel=1e-3)


def test_utility_is_the_mean_gain(
    plain: Any, engine: TransformersGenerator, tokenizer: Tokenizer, starter: Index, tmp_path: Path
) -> None:
    whole = PromptForm(Recipe.load("ica"), starter.pool, tokenizer)
    pool = Pool.from_demonstrations([one for one in starter.pool if whole.accepts(one)][:4])
    questions = pool_questions(pool, 3)
    form = PromptForm(Recipe.load("ica"), pool, tokenizer, context_length=engine.context_length)
    found = measure_utilities(pool, questions, form, engine, tmp_path / "u.jsonl", {})
    for one in pool:
        gains = []
        for question in questions:
            if question.id != one.id:
                reference = f" {question.reference}"
                ask = f"Question: {question.query.text}\n\nHere’s an example answer:"
                shown = plain(f"{asking(one)} {one.response}\n\n{ask}", reference)
                gains.append(np.mean(plain(ask, reference)) - np.mean(shown))
        assert found[one.id] == pytest.approx(np.mean(gains), abs=1e-4)


def test_an_interrupted_scoring_resumes(
    engine: TransformersGenerator, tokenizer: Tokenizer, starter: Index, tmp_path: Path
) -> None:
    pool = starter.pool[:40]
    scorer = ResponseScorer(Recipe.load("ica"), tokenizer, engine)
    asked: list[int] = []
    plain_perplexities = scorer.perplexities

    def count(demonstrations: Any) -> Any:
        asked.append(len(demonstrations))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return plain_perplexities(demonstrations)

    scorer.perplexities = count  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        measure_scores(pool, "perplexity", scorer, tmp_path / "p.jsonl", {})
    found = measure_scores(pool, "perplexity", scorer, tmp_path / "p.jsonl", {})
    assert asked == [32, 8, 8]
    assert set(found) == set(pool.ids)
    with pytest.raises(ConfigError, match="model"):
        measure_scores(pool, "perplexity", scorer, tmp_path / "p.jsonl", {"model": "other"})


def scored(*scores: float | None) -> Pool:
    pool = Pool.from_demonstrations(Demonstration(f"q{n}", f"a{n}") for n in range(len(scores)))
    return with_scores(pool, "ifd", dict(zip(pool.ids, scores, strict=True)))


def test_selecting_keeps_the_best_and_drops_what_the_rule_drops(tmp_path: Path) -> None:
    pool = scored(0.5, 1.0, None, 0.9, 1.7, 0.7)
    assert [one.instruction for one in select(pool, "ifd", 2)] == ["q3", "q5"]
    assert [one.instruction for one in select(pool, "ifd", 10)] == ["q3", "q5", "q0"]
    with pytest.raises(DataError, match=r"no scores by length; add them with `ragalign pool score --by length`"):
        select(pool, "length", 2)
    both = with_scores(pool, "perplexity", dict(zip(pool.ids, [3.0, 2.0, 1.0, 6.0, 5.0, 4.0], strict=True)))
    assert [one.instruction for one in select(both, "perplexity", 2)] == ["q2", "q1"]
    assert scores_of(both)["ifd"] == [0.5, 1.0, None, 0.9, 1.7, 0.7], "earlier scores are kept"
    both.save(tmp_path / "scored.jsonl")
    assert scores_of(Pool.load(tmp_path / "scored.jsonl")) == scores_of(both)
    for top, ceiling in ((0, 0.9), (1, -1.0), (1, 1.1)):
        with pytest.raises(ConfigError):
            select(pool, "ifd", top, ceiling=ceiling)


def test_diverse_selection_skips_what_is_similar_to_a_better_one() -> None:
    pool = scored(0.9, 0.8, 0.7, 0.6)
    vectors = np.array([[1, 0], [0.99, 0.141], [0, 1], [0.7, 0.714]], dtype=np.float32)
    assert [one.instruction for one in select(pool, "ifd", 4, vectors=vectors)] == ["q0", "q2", "q3"]
    assert [one.instruction for one in select(pool, "ifd", 4, vectors=vectors, ceiling=0.5)] == ["q0", "q2"]
    assert len(select(pool, "ifd", 4, vectors=vectors, ceiling=1.0)) == 4


def test_length_counts_the_models_tokens(tokenizer: Tokenizer, starter: Index) -> None:
    pool = starter.pool[:3]
    assert lengths(pool, tokenizer) == {one.id: len(tokenizer.encode(one.response)) for one in pool}
