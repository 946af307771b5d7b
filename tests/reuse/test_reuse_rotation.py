"""Keys that are moved equal those that Transformers computes at the new positions, for every family that is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from ragalign.errors import ConfigError
from ragalign.reuse.rotation import _PAIRS, Mover, rotations

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TYPES = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
EXTRA: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 32, "layer_types": TYPES},
    "qwen2_moe": {
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3": {"head_dim": 24},
    "qwen3_moe": {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
    "mixtral": {"num_local_experts": 2},
    "phi": {"partial_rotary_factor": 0.5},
    "stablelm": {"partial_rotary_factor": 0.25},
    "gpt_neox": {"rotary_pct": 0.25, "num_key_value_heads": 4},
    "glm": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "cohere2": {"layer_types": TYPES, "sliding_window": 32},
    "exaone4": {"layer_types": TYPES, "sliding_window": 32},
    "olmo3": {"layer_types": TYPES, "sliding_window": 32},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
}


def keys_and_values(model: Any, ids: torch.Tensor, start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Of each layer, [n, heads, features], with the first token at position `start`."""
    cache = DynamicCache()
    positions = torch.arange(start, start + len(ids))[None]
    with torch.inference_mode():
        model(ids[None], position_ids=positions, past_key_values=cache, use_cache=True)
    return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in cache.layers]


def check_moves(config: Any, max_model_len: int = 4096, step: int = 700) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.randint(3, 128, (50,))
    old, new = keys_and_values(model, ids, 3), keys_and_values(model, ids, 3 + step)
    found = rotations(config, max_model_len=max_model_len)
    assert len(found) == len(old)
    there = torch.arange(3, 3 + len(ids))
    for rotation, (keys, values), (other_keys, other_values) in zip(found, old, new, strict=True):
        torch.testing.assert_close(values, other_values, atol=2e-4, rtol=1e-3)
        moved = keys
        if rotation is not None:
            mover = Mover(rotation, 4096, "cpu")
            moved = mover.apply_(keys.clone(), mover.turn(there, there + step))
            assert not torch.allclose(keys, moved, atol=1e-2)
        torch.testing.assert_close(moved, other_keys, atol=5e-4, rtol=1e-3)


def small(kind: str, **more: Any) -> Any:
    return AutoConfig.for_model(kind, **{**SMALL, **EXTRA.get(kind, {}), **more})


@pytest.mark.parametrize("kind", sorted(set(_PAIRS) - {"gemma3"}))
def test_every_known_family_is_moved_as_transformers_computes_it(kind: str) -> None:
    check_moves(small(kind))


@pytest.mark.parametrize(
    "parameters",
    [{"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}, LLAMA3, YARN],
    ids=lambda p: p["rope_type"],
)
def test_every_variant_of_rope_is_moved(parameters: dict[str, Any]) -> None:
    check_moves(small("llama", rope_parameters=parameters))


def test_longrope_follows_the_engines_context() -> None:
    config = small("phi3", rope_parameters=LONG, original_max_position_embeddings=1024)
    check_moves(config, max_model_len=1024, step=900)  # Transformers takes the short factors below 1,024 positions
    short, long = (rotations(config, max_model_len=n)[0] for n in (1024, 1025))
    assert short is not None
    assert long is not None
    assert short != long
    with pytest.raises(ConfigError, match="context length"):
        rotations(config)


def test_gemma_3_turns_its_two_kinds_of_layers_differently() -> None:
    found = rotations(small("gemma3_text"))
    assert found[0] == found[2]
    assert found[0] != found[3]


def test_olmo_3_scales_its_full_attention_only_however_its_parameters_are_written() -> None:
    """Transformers before 5.13 has one mapping, which its layers with a sliding window do not follow."""
    config = small("olmo3")
    config.rope_parameters = YARN
    sliding, full = (
        rotations(small("llama", rope_parameters=parameters))[0]
        for parameters in ({"rope_type": "default", "rope_theta": YARN["rope_theta"]}, YARN)
    )
    assert sliding != full
    assert rotations(config) == tuple(full if kind == "full_attention" else sliding for kind in TYPES)


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "'dynamic'"),
        ("bloom", {}, "ALiBi"),
        ("mpt", {}, "ALiBi"),
        ("deepseek_v3", {}, "MLA"),
        ("mamba2", {}, "state-space"),
        ("jamba", {}, "state-space"),
        ("gpt2", {}, "learned positions"),
        ("persimmon", {}, "not known"),
    ],
)
def test_what_is_no_rotation_is_refused_by_name(kind: str, more: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        rotations(AutoConfig.for_model(kind, **more))
    assert kind in str(caught.value)
    assert "\n" not in str(caught.value)
