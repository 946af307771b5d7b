"""Probabilities of given tokens: equal between both engines, and equal to a plain loop over a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import TransformersGenerator, VllmGenerator
from ragalign.generation.distributions import Distributions, from_dense, from_tensor
from ragalign.generation.openai import OpenAIGenerator
from ragalign.types import Decoding, Prompt

# float32 on both sides; the engines add in different orders.
TOLERANCE = 2e-3


@pytest.fixture(scope="module")
def sequences() -> tuple[list[list[int]], list[int]]:
    drawn = np.random.default_rng(0)
    lengths, starts = (9, 40, 23, 2, 64, 31), (4, 12, 22, 1, 60, 1)
    return [drawn.integers(2, 500, length).tolist() for length in lengths], list(starts)


@pytest.fixture(scope="module")
def reference(tiny_model: Path, sequences: tuple[list[list[int]], list[int]]) -> list[np.ndarray[Any, Any]]:
    """Log-probabilities [t, v] from a plain loop: one position after the other, without batch, cache or padding."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for ids, start in zip(*sequences, strict=True):
            logits = [model(torch.tensor([ids[:place]])).logits[0, -1] for place in range(start, len(ids))]
            rows = [one.log_softmax(-1) for one in logits]
            found.append(torch.stack(rows).numpy())
    return found


def collected(engine: Any, sequences: tuple[list[list[int]], list[int]], top_k: int | None) -> list[Distributions]:
    found = dict(engine.distributions(*sequences, top_k=top_k))
    assert sorted(found) == list(range(len(sequences[0])))
    return [found[place] for place in sorted(found)]


def check(
    found: list[Distributions],
    reference: list[np.ndarray[Any, Any]],
    sequences: tuple[list[list[int]], list[int]],
    top_k: int | None,
) -> None:
    for one, dense, ids, start in zip(found, reference, *sequences, strict=True):
        own = np.array(ids[start:], dtype=int)
        assert one.ids.tolist() == own.tolist()
        assert len(one) == len(ids) - start
        expected = dense[np.arange(len(own)), own]
        np.testing.assert_allclose(one.logprobs, expected, atol=TOLERANCE)
        # A rank may differ by the tokens that are as probable within the tolerance.
        most = 1 + (dense > expected[:, None] - TOLERANCE).sum(1)
        least = 1 + (dense > expected[:, None] + TOLERANCE).sum(1)
        assert ((least <= one.ranks) & (one.ranks <= most)).all()
        if top_k is None:
            assert one.dense is not None
            np.testing.assert_allclose(one.dense, dense, atol=TOLERANCE)
        else:
            assert one.dense is None
            np.testing.assert_allclose(one.top_logprobs, -np.sort(-dense, axis=1)[:, :top_k], atol=TOLERANCE)
        for place in range(len(one)):
            best = one.best(place, 5)
            np.testing.assert_allclose([value for _, value in best], -np.sort(-dense[place])[:5], atol=TOLERANCE)
            np.testing.assert_allclose([dense[place, id_] for id_, _ in best], [v for _, v in best], atol=TOLERANCE)


@pytest.mark.parametrize("top_k", [None, 7])
def test_transformers_equals_a_plain_loop(
    transformers_engine: TransformersGenerator, sequences: Any, reference: Any, top_k: int | None
) -> None:
    check(collected(transformers_engine, sequences, top_k), reference, sequences, top_k)


@pytest.mark.parametrize("top_k", [None, 7])
def test_vllm_equals_a_plain_loop(
    vllm_engine: VllmGenerator, sequences: Any, reference: Any, top_k: int | None
) -> None:
    check(collected(vllm_engine, sequences, top_k), reference, sequences, top_k)


@given(arrays(np.float32, (4, 9), elements=st.sampled_from([-1.0, -2.0, -3.0, -4.5])), st.integers(3, 9))
def test_ties_do_not_depend_on_how_much_is_known(values: Any, top_k: int) -> None:
    import torch

    ids = [0, 3, 8, 5]
    full, top = from_dense(values, ids), from_tensor(torch.tensor(values), ids, top_k)
    assert full.ranks.tolist() == top.ranks.tolist()
    assert full.ranks.tolist() == [1 + int((row > row[id_]).sum()) for row, id_ in zip(values, ids, strict=True)]


def test_bad_arguments_are_refused(transformers_engine: TransformersGenerator) -> None:
    with pytest.raises(ConfigError, match="start must be at least 1 and below"):
        transformers_engine.distributions([[1, 2]], [0])
    with pytest.raises(ConfigError, match="below 2"):
        transformers_engine.distributions([[1, 2]], [2])
    with pytest.raises(ConfigError, match="at least 3"):
        transformers_engine.distributions([[1, 2]], [1], top_k=2)
    with pytest.raises(GenerationError, match="has 2,048 tokens"):
        transformers_engine.distributions([[5] * 2048], [1])
    endpoint = OpenAIGenerator(model="m", base_url="http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no probabilities of given tokens"):
        endpoint.distributions([[1, 2]], [1])


def test_written_tokens_are_the_text(
    transformers_engine: TransformersGenerator, vllm_engine: VllmGenerator, make_prompt: Any
) -> None:
    from ragalign.types import Decoding

    decoding = Decoding(max_tokens=12)
    prompt = make_prompt("How do I boil an egg?")
    [one], [other] = (engine.generate([prompt], decoding) for engine in (transformers_engine, vllm_engine))
    assert one.outputs[0].token_ids == other.outputs[0].token_ids
    assert len(one.outputs[0].token_ids) == one.n_output_tokens == 12


@pytest.mark.parametrize("n_prompt", [33, 64, 100], ids=["in a block", "whole blocks", "several blocks"])
def test_continuations_are_whole_whatever_the_cache_holds(vllm_engine: VllmGenerator, n_prompt: int) -> None:
    drawn = np.random.default_rng(n_prompt).integers(2, 500, n_prompt + 70)
    prompt, answer = Prompt(("",), drawn[:n_prompt].astype(np.int32)), drawn[n_prompt:].tolist()
    [(_, expected)] = vllm_engine.distributions([drawn.tolist()], [n_prompt], top_k=3)
    vllm_engine.reset_prefix_cache()
    vllm_engine.generate([prompt], Decoding(max_tokens=1))
    for _ in range(2):  # the second time the answer itself is in the cache
        [(_, found, _)] = vllm_engine.continuations([prompt], [answer], top_k=3)
        assert found.ids.tolist() == answer
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=TOLERANCE)
