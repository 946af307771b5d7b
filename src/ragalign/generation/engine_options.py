"""The options of a vLLM engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ragalign._quiet import is_verbose
from ragalign.errors import ConfigError
from ragalign.models import locate_tokenizer

# By name, since the engine loads both in processes of its own.
_CONNECTOR = "ragalign.reuse.connector"
_EXTENSION = "ragalign.reuse.worker_extension.ReuseWorkerExtension"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Options of a vLLM engine, for `VllmGenerator` and `AsyncVllmGenerator`.

    Attributes:
        dtype: type of weights and activations, such as "bfloat16" or "float32"; "auto" follows the model.
        tensor_parallel_size: number of devices that share the model.
        gpu_memory_utilization: share of the GPU's memory for weights and cache, in (0, 1].
        max_model_len: maximum tokens of prompt and completion together; None is the model's maximum.
        block_size: tokens per block of the prefix cache; None is 16 on GPUs and 32 on CPUs.
        quantization: quantization method, such as "awq" or "gguf"; None follows the model.
        enforce_eager: run without graph capture; None is True on CPUs only.
        seed: the engine's seed; `Decoding.seed` seeds single requests.
        kv_transfer_config: a KV connector as the fields of `vllm.config.KVTransferConfig`, such as
            ``{"kv_connector": "...", "kv_role": "kv_both"}``; None for none.
        extra: any other arguments of `vllm.EngineArgs`, by name.

    Raises:
        ConfigError: a value is out of range.
    """

    dtype: str = "auto"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    block_size: int | None = None
    quantization: str | None = None
    enforce_eager: bool | None = None
    seed: int = 0
    kv_transfer_config: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.tensor_parallel_size < 1:
            raise ConfigError(f"tensor_parallel_size must be 1 or more, not {self.tensor_parallel_size}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization must be above 0 and at most 1, not {self.gpu_memory_utilization}"
            )
        for name in ("max_model_len", "block_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, not {value}")
        if known := sorted(set(self.extra) & _NAMES):
            raise ConfigError(f"extra: {known[0]} has its own option; set EngineOptions.{known[0]}")

    @property
    def reuses(self) -> bool:
        """Whether the connector is ragalign's own."""
        return (self.kv_transfer_config or {}).get("kv_connector_module_path") == _CONNECTOR

    def with_changes(self, **changes: Any) -> EngineOptions:
        """Return a copy with changed options; names that are not attributes go to `extra`."""
        own = {name: value for name, value in changes.items() if name in _NAMES}
        extra = {name: value for name, value in changes.items() if name not in _NAMES}
        return replace(self, **own, extra={**self.extra, **extra})

    def arguments(self, model: str, tokenizer: str | Path | None) -> dict[str, Any]:
        """The arguments of `vllm.EngineArgs`; None for defaults that depend on the device.

        Raises:
            ConfigError: the tokenizer's folder does not exist.
        """
        arguments: dict[str, Any] = {
            "model": model,
            "tokenizer": None if tokenizer is None else locate_tokenizer(tokenizer),
            "enable_prefix_caching": True,
            "use_tqdm_on_load": is_verbose(),
            **{name: getattr(self, name) for name in _NAMES},
            **self.extra,
        }
        if self.reuses:
            arguments.setdefault("worker_extension_cls", _EXTENSION)
        return arguments


_NAMES = frozenset(option.name for option in fields(EngineOptions)) - {"extra"}
