"""Facts about a running engine's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.reuse.fingerprint import config_fingerprint, weights_fingerprint
from ragalign.reuse.rotation import Rotation, rotations

# Options of vLLM that divide a model, or a prompt, in ways that the connector does not know.
_NOT_PARALLEL = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Facts about one engine.

    Attributes:
        model: everything that changes a key or a value, as it goes into a store's manifest.
        about: settings that change no key or value.
        rotations: how each layer turns its keys.
    """

    model: dict[str, Any]
    about: dict[str, Any]
    rotations: tuple[Rotation | None, ...]


def engine_settings(vllm_config: Any, known: Mapping[str, Any]) -> EngineSettings:
    """Read a `VllmConfig`.

    Args:
        vllm_config: the engine's.
        known: what a store's manifest remembers of the weights' files.

    Raises:
        ConfigError: keys and values cannot be reused with this model or engine.
    """
    import vllm

    model_config, parallel = vllm_config.model_config, vllm_config.parallel_config
    config = model_config.hf_config
    turned = rotations(config, max_model_len=model_config.max_model_len)
    n_heads = model_config.get_total_num_kv_heads()
    options = {name: getattr(parallel, name, 1) for name in (*_NOT_PARALLEL, "tensor_parallel_size")}
    check_parallel(n_heads, {**options, "speculative_config": getattr(vllm_config, "speculative_config", None)})
    load_format = str(getattr(vllm_config.load_config.load_format, "value", vllm_config.load_config.load_format))
    about: dict[str, Any] = {"model": str(model_config.model), "vllm": vllm.__version__}
    if load_format == "dummy":
        weights = f"dummy, seed {model_config.seed}, vllm {vllm.__version__}"
    else:
        weights, files = weights_fingerprint(_folder(model_config), known.get("files", {}))
        about["files"] = files
    model = {
        "weights": weights,
        "config": config_fingerprint(config, turned),
        "dtype": str(model_config.dtype).removeprefix("torch."),
        "quantization": model_config.quantization,
        "kv_cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "layers": len(turned),
        "heads": n_heads,
        "features": model_config.get_head_size(),
    }
    return EngineSettings(model, about, turned)


def check_parallel(n_heads: int, options: Mapping[str, Any]) -> None:
    """Check that an engine with these options, under vLLM's names, can load keys and values of `n_heads` heads.

    Raises:
        ConfigError: it cannot.
    """
    for name in _NOT_PARALLEL:
        if options.get(name, 1) > 1:
            raise ConfigError(f"keys and values cannot be reused with {name} {options[name]}; set it to 1")
    if options.get("speculative_config") is not None:
        raise ConfigError("keys and values cannot be reused with speculative decoding; leave one of them out")
    n_devices = options.get("tensor_parallel_size", 1)
    if n_heads % n_devices:
        raise ConfigError(
            f"keys and values cannot be reused: {n_heads} key-value heads cannot be split evenly across {n_devices} "
            f"devices; set tensor_parallel_size to a divisor of {n_heads}"
        )


def _folder(model_config: Any) -> Path:
    """The folder of the model's files."""
    path = Path(model_config.model)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(model_config.model), revision=model_config.revision, local_files_only=True))
