"""Generators: vLLM's engine, OpenAI-compatible endpoints and transformers.

Names load on first use; engines load when a generator is created.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragalign.generation.asynchronous import AsyncEngine, ThreadedEngine
    from ragalign.generation.base import BaseGenerator
    from ragalign.generation.distributions import SupportsDistributions
    from ragalign.generation.engine_options import EngineOptions
    from ragalign.generation.factory import check_generator, make_generator
    from ragalign.generation.openai import OpenAIGenerator
    from ragalign.generation.presets import PRESETS, decoding_preset, validate
    from ragalign.generation.toy import build_toy_model
    from ragalign.generation.transformers import TransformersGenerator
    from ragalign.generation.vllm import VllmGenerator
    from ragalign.generation.vllm_async import AsyncVllmGenerator

_HOME = {
    "AsyncEngine": "asynchronous",
    "AsyncVllmGenerator": "vllm_async",
    "BaseGenerator": "base",
    "EngineOptions": "engine_options",
    "OpenAIGenerator": "openai",
    "PRESETS": "presets",
    "SupportsDistributions": "distributions",
    "ThreadedEngine": "asynchronous",
    "TransformersGenerator": "transformers",
    "VllmGenerator": "vllm",
    "build_toy_model": "toy",
    "check_generator": "factory",
    "decoding_preset": "presets",
    "make_generator": "factory",
    "validate": "presets",
}

__all__ = [
    "PRESETS",
    "AsyncEngine",
    "AsyncVllmGenerator",
    "BaseGenerator",
    "EngineOptions",
    "OpenAIGenerator",
    "SupportsDistributions",
    "ThreadedEngine",
    "TransformersGenerator",
    "VllmGenerator",
    "build_toy_model",
    "check_generator",
    "decoding_preset",
    "make_generator",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
