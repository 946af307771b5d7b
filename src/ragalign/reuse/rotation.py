"""How a model's keys depend on their position, and how to move them.

Rotary position embeddings (RoPE, Su et al. 2021, arXiv 2104.09864) turn pairs of a key's features by angles that are
proportional to its position. A key that was computed at one position becomes that of another by a further turn; values
do not depend on the position at all. That holds for every variant whose frequencies are fixed. Everything else is
refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ragalign.errors import ConfigError

# Families whose keys are a projection, perhaps normalised, then turned. "halves": feature i is paired with i + d/2, as
# Llama does in Transformers and vLLM. "neighbours": 2i with 2i + 1. Tests move each family's keys against Transformers.
_PAIRS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2",
                "gemma3", "gemma3_text", "phi", "phi3", "olmo", "olmo2", "olmo3", "smollm3", "exaone4", "granite",
                "stablelm", "starcoder2", "gpt_neox",
            ),
            "halves",
        ),
        **dict.fromkeys(("cohere", "cohere2", "glm", "glm4"), "neighbours"),
    }
)  # fmt: skip
# Named so that the message says why, not only that.
_REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("bloom", "mpt", "jais"), "its attention uses ALiBi, which biases scores and turns no keys"),
        **dict.fromkeys(
            ("deepseek_v2", "deepseek_v3", "deepseek_v32", "minicpm3", "kimi_k2", "longcat_flash"),
            "it uses multi-head latent attention (MLA), which keeps no keys that could be moved",
        ),
        **dict.fromkeys(
            (
                "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba", "zamba2", "nemotron_h", "falcon_h1",
                "granitemoehybrid", "qwen3_next", "lfm2", "recurrent_gemma", "rwkv", "plamo2",
            ),
            "it has state-space or recurrent layers, whose state cannot be put together from parts",
        ),
        **dict.fromkeys(("gpt2", "opt", "gpt_bigcode", "xglm"), "it adds learned positions to its inputs"),
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rotation:
    """How one layer turns its keys.

    Attributes:
        frequencies: radians per position, for each pair of features; float32 values, as engines compute them.
        neighbours: whether pairs are (2i, 2i + 1); otherwise (i, i + d/2), where d is twice the number of pairs.
    """

    frequencies: tuple[float, ...]
    neighbours: bool = False

    @property
    def n_rotary(self) -> int:
        """How many features of a key are turned; those after them are not."""
        return 2 * len(self.frequencies)


def rotations(config: Any, *, max_model_len: int | None = None) -> tuple[Rotation | None, ...]:
    """How each layer of a model turns its keys; None for layers that do not turn them.

    Args:
        config: the model's configuration, as Transformers or vLLM hold it.
        max_model_len: the engine's context length, which decides between LongRoPE's two sets of factors.

    Raises:
        ConfigError: moving this model's keys is not a rotation, or is not known to be one.
    """
    config = config.get_text_config()
    kind = str(config.model_type)
    if (why := _REFUSED.get(kind)) is not None or (why := _other_reason(config)) is not None:
        raise ConfigError(f"keys and values of {kind!r} cannot be reused: {why}")
    if kind not in _PAIRS:
        raise ConfigError(
            f"keys and values of {kind!r} cannot be reused: it is not known how its keys depend on their position "
            f"(known: {', '.join(sorted(_PAIRS))})"
        )
    neighbours = _PAIRS[kind] == "neighbours"
    made: dict[str | None, Rotation] = {}
    result: list[Rotation | None] = []
    for layer in range(config.num_hidden_layers):
        layer_type = _layer_type(config, layer)
        if not _is_turned(config, kind, layer, layer_type):
            result.append(None)
            continue
        if layer_type not in made:
            made[layer_type] = Rotation(_frequencies(config, layer_type, max_model_len), neighbours)
        result.append(made[layer_type])
    return tuple(result)


def _other_reason(config: Any) -> str | None:
    if getattr(config, "alibi", False):
        return "its attention uses ALiBi, which biases scores and turns no keys"
    if getattr(config, "kv_lora_rank", None):
        return "it uses multi-head latent attention (MLA), which keeps no keys that could be moved"
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder model"
    if getattr(config, "use_bidirectional_attention", False) or getattr(config, "is_causal", True) is False:
        return "its attention is bidirectional"
    return None


def _layer_type(config: Any, layer: int) -> str | None:
    """The layer's type where the configuration has a rotation for each type, as Gemma 3's; None for one rotation."""
    by_type = isinstance(next(iter((_parameters(config) or {}).values()), None), Mapping)
    return str(config.layer_types[layer]) if by_type else None


def _is_turned(config: Any, kind: str, layer: int, layer_type: str | None) -> bool:
    if kind == "smollm3":
        return bool(config.no_rope_layers[layer])
    if kind == "cohere2":
        return bool(config.layer_types[layer] == "sliding_attention")
    if kind == "exaone4":
        types = config.layer_types
        return "sliding_attention" not in types or bool(types[layer] == "sliding_attention")
    return True


def _parameters(config: Any) -> Mapping[str, Any] | None:
    """RoPE's parameters, in one mapping or in one for each type of layer."""
    found = getattr(config, "rope_parameters", None)
    if found:
        return _by_type(config, dict(found))
    # Transformers before version 5.
    scaling = dict(getattr(config, "rope_scaling", None) or {})
    theta = getattr(config, "rope_theta", None)
    if theta is None:
        return None
    local = getattr(config, "rope_local_base_freq", None)
    if local is not None:
        return {
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
            "full_attention": {"rope_theta": theta, **scaling},
        }
    return _by_type(config, {"rope_theta": theta, **scaling})


def _by_type(config: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters for each type of layer, where engines scale only some of them although one mapping is given."""
    is_flat = not any(isinstance(value, Mapping) for value in parameters.values())
    if config.model_type != "olmo3" or not is_flat:
        return parameters
    plain = {"rope_type": "default", "rope_theta": parameters["rope_theta"]}
    return {"sliding_attention": plain, "full_attention": parameters}


def _frequencies(config: Any, layer_type: str | None, max_model_len: int | None) -> tuple[float, ...]:
    found = _parameters(config)
    if found is None:
        raise ConfigError(f"keys and values of {config.model_type!r} cannot be reused: it names no RoPE parameters")
    parameters = dict(found if layer_type is None else found[layer_type])
    name = str(parameters.get("rope_type", parameters.get("type", "default")))
    if "mrope_section" in parameters:
        name = "mrope"
    if name not in _VARIANTS:
        why = "its angles depend on the length of the sequence" if name == "dynamic" else "it is not a fixed rotation"
        raise ConfigError(
            f"keys and values of {config.model_type!r} cannot be reused: {name!r} RoPE is not supported, since {why} "
            f"(supported: {', '.join(sorted(_VARIANTS))})"
        )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = parameters.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if share is None:
        share = getattr(config, "rotary_pct", 1.0)
    return _VARIANTS[name](parameters, config, int(head * float(share or 1.0)), max_model_len)


def _plain(parameters: Mapping[str, Any], n_rotary: int) -> Any:
    import torch

    exponents = torch.arange(0, n_rotary, 2, dtype=torch.float32) / n_rotary
    return 1.0 / float(parameters["rope_theta"]) ** exponents


def _default(parameters: Mapping[str, Any], _: Any, n_rotary: int, __: int | None) -> tuple[float, ...]:
    return tuple(_plain(parameters, n_rotary).tolist())


def _linear(parameters: Mapping[str, Any], _: Any, n_rotary: int, __: int | None) -> tuple[float, ...]:
    """Position interpolation (Chen et al. 2023, arXiv 2306.15595)."""
    return tuple((_plain(parameters, n_rotary) / float(parameters["factor"])).tolist())


def _llama3(parameters: Mapping[str, Any], _: Any, n_rotary: int, __: int | None) -> tuple[float, ...]:
    """Llama 3.1's: long waves are stretched by the factor, short ones stay, those in between are blended."""
    import torch

    plain = _plain(parameters, n_rotary)
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    context = float(parameters["original_max_position_embeddings"])
    waves = context * plain / (2 * math.pi)  # how often each goes round within the original context
    kept = torch.clamp((waves - low) / (high - low), 0, 1) if low != high else (waves > high).float()
    return tuple(((1 - kept) * plain / float(parameters["factor"]) + kept * plain).tolist())


def _yarn(parameters: Mapping[str, Any], config: Any, n_rotary: int, _: int | None) -> tuple[float, ...]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071), equations 17 to 23. Its scale of keys does not matter here."""
    import torch

    plain = _plain(parameters, n_rotary)
    context = float(parameters["original_max_position_embeddings"])
    factor = float(parameters.get("factor") or config.max_position_embeddings / context)
    theta = float(parameters["rope_theta"])

    def feature(n_rounds: float) -> float:
        """The pair of features that goes round this often within the original context."""
        return n_rotary * math.log(context / (n_rounds * 2 * math.pi)) / (2 * math.log(theta))

    low, high = feature(parameters.get("beta_fast") or 32), feature(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n_rotary - 1)
    high += 0.001 if low == high else 0
    stretched = torch.clamp((torch.arange(n_rotary // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    return tuple((plain / factor * stretched + plain * (1 - stretched)).tolist())


def _longrope(
    parameters: Mapping[str, Any], config: Any, n_rotary: int, max_model_len: int | None
) -> tuple[float, ...]:
    """LongRoPE (Ding et al. 2024, arXiv 2402.13753), which vLLM makes static: by the engine's context length."""
    import torch

    if max_model_len is None:
        raise ConfigError("LongRoPE's factors depend on the engine's context length, which is not known")
    original = parameters.get("original_max_position_embeddings") or config.original_max_position_embeddings
    factors = parameters["long_factor" if max_model_len > int(original) else "short_factor"]
    return tuple((_plain(parameters, n_rotary) / torch.tensor(factors, dtype=torch.float32)).tolist())


_Variant = Callable[[Mapping[str, Any], Any, int, "int | None"], "tuple[float, ...]"]
_VARIANTS: Mapping[str, _Variant] = MappingProxyType(
    {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
)


class Mover:
    """Moves keys from the positions where they were computed to others, on one device.

    Args:
        rotation: how the layer turns its keys.
        n_positions: the engine's context length.
        device: of the keys.
    """

    def __init__(self, rotation: Rotation, n_positions: int, device: Any) -> None:
        import torch

        self._rotation = rotation
        frequencies = torch.tensor(rotation.frequencies, dtype=torch.float32)
        # The angles as engines round them, so that what is moved is turned by exactly the difference that they see.
        self._angles = torch.outer(torch.arange(n_positions, dtype=torch.float32), frequencies).to(device)

    def turn(self, old: Any, new: Any) -> tuple[Any, Any]:
        """Cosines and sines, float32 [n, pairs], of the turns from positions `old` to `new` (both int64 [n])."""
        angles = self._angles[new] - self._angles[old]
        return angles.cos(), angles.sin()

    def apply_(self, keys: Any, turn: tuple[Any, Any]) -> Any:
        """Turn ``keys`` [..., n, heads, features] in place, computing in float32."""
        cos, sin = (part[:, None, :] for part in turn)
        n = self._rotation.n_rotary
        if self._rotation.neighbours:
            first, second = keys[..., 0:n:2], keys[..., 1:n:2]
        else:
            first, second = keys[..., : n // 2], keys[..., n // 2 : n]
        x, y = first.float(), second.float()
        turned = x * cos - y * sin, y * cos + x * sin  # both, before either is written
        first.copy_(turned[0])
        second.copy_(turned[1])
        return keys
