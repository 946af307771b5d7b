"""What the engine makes of kept keys and values equals what Transformers makes of the same pieces."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.reuse_world import CONTEXT, World, make_world

from ragalign.generation import VllmGenerator
from ragalign.reuse.keeping import connector_config, keep
from ragalign.reuse.pieces import piece_name

TYPES = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
SHAPES: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "num_hidden_layers": 4,
        "layer_types": TYPES,
        "sliding_window": 96,
        "query_pre_attn_scalar": 32,
    },
    "qwen2": {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3},
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 3},
}
TOLERANCE = 1e-4


def log_probabilities(world: World, prompts: list[Any]) -> torch.Tensor:
    """[prompts, vocabulary], of the first new token, by the engine."""
    from vllm import SamplingParams

    from ragalign.generation._vllm_requests import engine_prompt

    inputs = []
    for position, prompt in enumerate(prompts):
        extra = None if prompt.reuse is None else {"kv_transfer_params": prompt.reuse.params()}
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, detokenize=False, extra_args=extra)
        inputs.append((engine_prompt(prompt), params, position))
    found = torch.empty(len(prompts), world.model.config.get_text_config().vocab_size)
    for position, output, _ in world.engine._loop.run(inputs):
        for id_, told in output.outputs[0].logprobs[0].items():
            found[position, id_] = told.logprob
    return found


def check(world: World, n_prompts: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    prompts = []
    for number in range(n_prompts):
        pieces = [int(one) for one in rng.permutation(len(world.pieces))[: 1 + number % 9]]
        if number % 5 == 0:
            pieces[:2] = [0, 1][: len(pieces)]  # which end on blocks
        query = [int(id_) for id_ in rng.integers(5, 400, rng.integers(1, 60))]
        n_reused = len(pieces) - int(rng.integers(0, min(3, len(pieces))))
        prompts.append(world.prompt(list(dict.fromkeys(pieces)), query, n_reused=n_reused))
    found = log_probabilities(world, prompts)
    expected = torch.stack([world.expected(prompt) for prompt in prompts])
    # What is reused is not what would be computed, so equality with the pieces says something.
    plain = torch.stack([world.expected(type(prompt)((), prompt.ids)) for prompt in prompts[1:9]])
    assert float((plain - expected[1:9]).abs().max()) > 100 * TOLERANCE
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    # Again, now out of the engine's cache.
    torch.testing.assert_close(log_probabilities(world, prompts), expected, atol=TOLERANCE, rtol=0)


def test_a_random_llama_answers_as_transformers_does_with_the_same_pieces(world: World) -> None:
    check(world, 27)


def test_one_demonstration_behind_the_prefix_equals_full_attention(world: World) -> None:
    prompts = [world.prompt([number], [7, 8, 9, *range(20, 20 + number)]) for number in range(len(world.pieces))]
    full = torch.stack([world.expected(type(prompt)((), prompt.ids)) for prompt in prompts])
    torch.testing.assert_close(log_probabilities(world, prompts), full, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", [*SHAPES, "llama3"])
def test_a_hundred_prompts_of_every_shape(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    folder = random_model(kind, tiny_model, tmp_path / "model")
    with make_world(folder, tmp_path, seed=len(kind), kv_cache_memory_bytes=2**26) as made:
        check(made, 100, seed=len(kind))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_prompts_that_are_computed_in_chunks(tiny_model: Path, tmp_path: Path) -> None:
    """Pieces are recorded over several steps, and prompts are computed in chunks after their loaded tokens."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    chunked = {"enable_chunked_prefill": True, "max_num_batched_tokens": 24, "max_num_seqs": 8}
    with make_world(tiny_model, tmp_path, seed=3, kv_cache_memory_bytes=2**26, **chunked) as made:
        assert max(map(len, made.pieces)) > chunked["max_num_batched_tokens"]
        check(made, 40, seed=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_workers_with_half_of_the_heads_each(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that two workers have computed, read by them; and the other half of the pieces, by one worker."""
    pytest.importorskip("vllm", reason="needs the `cpu` or `gpu` extra")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # vLLM wants a NUMA node for each worker otherwise
    folder = random_model("qwen2", tiny_model, tmp_path / "model")
    with make_world(folder, tmp_path, seed=5, kv_cache_memory_bytes=2**26, tensor_parallel_size=2) as made:
        check(made, 40, seed=5)
        half = made.pieces[::2]
        for piece in half:
            made.store.remove(piece_name(piece))
        alone = replace(made)
    reuse = connector_config(alone.store.folder, memory=2**16)
    options: dict[str, Any] = {"max_model_len": CONTEXT, "kv_cache_memory_bytes": 2**26, "max_logprobs": -1}
    with VllmGenerator(folder, kv_transfer_config=reuse, dtype="float32", **options) as engine:
        assert keep(alone.store, engine, alone.pieces, lambda _: None) == len(half)
        check(replace(alone, engine=engine), 40, seed=5)


def random_model(kind: str, tiny_model: Path, folder: Path) -> Path:
    """A random model of this family with the tiny model's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 160, "vocab_size": 512, **SHAPES.get(kind, {})}
    shape |= {"max_position_embeddings": 4096, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "llama3":
        rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
        rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 512}
        shape |= {"rope_parameters": rope, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama" if kind == "llama3" else kind, **shape)
    config.initializer_range = 0.06  # attention that matters
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_model / name, folder / name)
    return folder
