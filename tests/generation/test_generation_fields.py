"""top_k, min_p, min_tokens, stop_token_ids, ignore_eos and logit_bias: one meaning in vLLM and in transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ragalign.errors import ConfigError, GenerationError
from ragalign.generation import TransformersGenerator, VllmGenerator, validate
from ragalign.generation._completions import decoding_fields, extension_fields
from ragalign.generation._sampling import sampler
from ragalign.types import Decoding, Prompt

PromptMaker = Callable[..., Prompt]
GREEDY = Decoding(max_tokens=12)


@pytest.mark.parametrize(
    ("fields", "warpers"),
    [
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"min_p": 0.15}, [MinPLogitsWarper(0.15)]),
        ({"top_k": 4, "top_p": 0.8}, [TopKLogitsWarper(4), TopPLogitsWarper(0.8)]),
        (
            {"min_p": 0.05, "top_k": 5, "top_p": 0.9},
            [MinPLogitsWarper(0.05), TopKLogitsWarper(5), TopPLogitsWarper(0.9)],
        ),
    ],
    ids=["top_k", "min_p", "top_k-top_p", "all"],
)
def test_draws_follow_the_distribution_that_transformers_defines(fields: dict[str, Any], warpers: list[Any]) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    draws = 6000
    expected = logits / 0.8
    for warper in warpers:
        expected = warper(None, expected)
    shares = expected.softmax(-1)[0]
    drawn = sampler(Decoding(temperature=0.8, **fields), torch.ones(draws, 1), list(range(draws)))(
        torch.zeros(draws, 1, dtype=torch.long), logits.expand(draws, -1)
    ).argmax(-1)
    counts = torch.bincount(drawn, minlength=6)
    kept = shares > 0
    assert counts[~kept].sum() == 0
    assert chisquare(counts[kept].numpy(), (shares[kept] * draws).numpy(), sum_check=False).pvalue > 1e-4


@pytest.fixture(params=["vllm", "transformers"])
def engine(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("vllm_engine" if request.param == "vllm" else "transformers_engine")


def test_both_engines_mean_the_same(
    vllm_engine: VllmGenerator, transformers_engine: TransformersGenerator, make_prompt: PromptMaker
) -> None:
    prompt = make_prompt("The train leaves at")
    [greedy] = vllm_engine.generate([prompt], GREEDY)
    first, *others = dict.fromkeys(greedy.outputs[0].token_ids)
    second = others[0]
    end = transformers_engine._tokenizer.eos_token_id
    for fields in (
        {"logit_bias": ((first, -100.0),)},
        {"logit_bias": ((first, 3.0), (second, -2.5)), "repetition_penalty": 1.3},
        {"stop_token_ids": (second,)},
        {"stop_token_ids": (second,), "min_tokens": 5},
        {"logit_bias": ((end, 100.0),)},
        {"logit_bias": ((end, 100.0),), "min_tokens": 3},
        {"logit_bias": ((end, 100.0),), "ignore_eos": True},
        {"temperature": 1.7, "top_k": 1, "seed": 1},
        {"temperature": 1.7, "min_p": 1.0, "seed": 1},
    ):
        decoding = replace(GREEDY, **fields)
        found = [engine.generate([prompt], decoding)[0].outputs[0] for engine in (vllm_engine, transformers_engine)]
        assert found[0] == found[1], fields
        assert found[0].n_tokens >= decoding.min_tokens


def test_tokens_that_a_model_lacks_are_named(engine: Any, make_prompt: PromptMaker) -> None:
    prompt = make_prompt("Hi")
    lacking = engine.vocabulary_size
    for fields in ({"stop_token_ids": (lacking,)}, {"logit_bias": ((5, 1.0), (lacking, 1.0))}):
        with pytest.raises(ConfigError, match=f"{next(iter(fields))}.*{lacking}"):
            engine.generate([prompt], replace(GREEDY, **fields))
    for wrong in (lacking, 10**6, -1):
        ids = np.array([*prompt.ids, wrong], dtype=np.int32)
        with pytest.raises(GenerationError, match=f"token id {wrong}"):
            engine.generate([replace(prompt, ids=ids)], GREEDY)
    assert engine.generate([prompt], GREEDY)[0].text  # and the engine lives


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1}, {"top_k": 1.5}, {"min_p": 1.1}, {"min_p": -0.1}, {"min_tokens": -1}, {"stop_token_ids": (-1,)},
        {"min_tokens": 5, "max_tokens": 4}, {"logit_bias": ((1, 101.0),)}, {"logit_bias": ((1, float("nan")),)},
        {"logit_bias": ((-1, 1.0),)}, {"stop_token_ids": (1.5,)},
    ],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_named(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(fields))):
        validate(Decoding(**fields))


def test_servers_get_what_matters_and_nothing_else() -> None:
    assert extension_fields(Decoding()) == {}
    assert "logit_bias" not in decoding_fields(Decoding(), (), 0)
    decoding = Decoding(top_k=5, min_p=0.1, min_tokens=2, stop_token_ids=(7,), ignore_eos=True, logit_bias=((9, -5.0),))
    assert extension_fields(decoding) == {
        "top_k": 5, "min_p": 0.1, "min_tokens": 2, "stop_token_ids": [7], "ignore_eos": True,
    }  # fmt: skip
    assert decoding_fields(decoding, (), 0)["logit_bias"] == {"9": -5.0}
