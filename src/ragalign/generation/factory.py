"""Creating generators by name."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from ragalign._optional import is_installed, require
from ragalign.errors import ConfigError
from ragalign.generation.base import BaseGenerator
from ragalign.generation.engine_options import EngineOptions

_DTYPES = {
    "VllmGenerator": ("auto", "half", "float16", "bfloat16", "float", "float32"),
    "TransformersGenerator": ("auto", "float16", "bfloat16", "float32", "float64"),
}


def make_generator(
    backend: str = "auto",
    *,
    model: str,
    context_length: int | None = None,
    tokenizer: str | Path | None = None,
    **options: Any,
) -> BaseGenerator:
    """Create a generator for `model`.

    Args:
        backend: "vllm", "transformers" or "openai" (which needs `base_url`); the ``http(s)://`` URL of an
            OpenAI-compatible endpoint; or "auto": vLLM if it is installed, else transformers.
        model: a folder or Hub id, or the name of the model on the endpoint.
        context_length: maximum tokens of prompt and completion together, if less than the model's.
        tokenizer: a folder or Hub id, if not the model's; an endpoint has its own.
        options: arguments of the generator's class.

    Raises:
        ConfigError: no such backend, or it has no such option.
        GenerationError, MissingDependencyError: as the generator's class.
    """
    kind, options = _resolved(backend, context_length, options)
    if tokenizer is not None and "base_url" not in options:
        options["tokenizer"] = tokenizer
    generator: BaseGenerator = kind(model=model, **options)
    return generator


def check_generator(backend: str = "auto", *, model: str, context_length: int | None = None, **options: Any) -> None:
    """Check the arguments of `make_generator` without starting an engine.

    Raises:
        ConfigError: no such backend or model folder, or an option is unknown or out of range.
        MissingDependencyError: the backend's package is not installed.
    """
    kind, options = _resolved(backend, context_length, options)
    if "base_url" not in options:
        from ragalign.models import locate_tokenizer

        locate_tokenizer(model)  # does not convert the weights of a GGUF file
    dtype = options.get("dtype", "auto")
    if (known := _DTYPES.get(kind.__name__)) and dtype not in known:
        raise ConfigError(f"no dtype {dtype!r}; use one of {', '.join(known)}")
    if kind.__name__ == "VllmGenerator":
        from ragalign.generation._vllm_start import check_options

        given = options.pop("options", None) or EngineOptions()
        changed = given.with_changes(**{name: value for name, value in options.items() if name != "tokenizer"})
        if not is_installed("vllm"):  # importing it takes seconds
            require("vllm", "the vllm backend")
        if changed.extra:
            check_options(dict(changed.extra))
    elif kind.__name__ == "TransformersGenerator":
        if not is_installed("transformers"):
            require("transformers", "the transformers backend")
        if options.get("batch_size", 1) < 1:
            raise ConfigError(f"batch_size must be at least 1, not {options['batch_size']}")


def _resolved(backend: str, context_length: int | None, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The generator's class and its arguments."""
    if backend.startswith(("http://", "https://")):
        options = {"base_url": backend, **options}
        backend = "openai"
    if backend == "auto":
        backend = "vllm" if is_installed("vllm") else "transformers"
    if context_length is not None:
        options["max_model_len" if backend == "vllm" else "context_length"] = context_length
    kind = _class(backend)
    parameters = inspect.signature(kind).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [name for name in parameters if name != "model"]
        if unknown := sorted(set(options) - set(known)):
            raise ConfigError(f"the {backend} generator has no option {unknown[0]!r}; its options: {', '.join(known)}")
    if "base_url" in parameters and "base_url" not in options:
        raise ConfigError("the openai generator needs base_url, such as http://localhost:8000/v1")
    return kind, options


def _class(backend: str) -> Any:
    if backend == "vllm":
        from ragalign.generation.vllm import VllmGenerator

        return VllmGenerator
    if backend == "transformers":
        from ragalign.generation.transformers import TransformersGenerator

        return TransformersGenerator
    if backend == "openai":
        from ragalign.generation.openai import OpenAIGenerator

        return OpenAIGenerator
    raise ConfigError(f"no generator {backend!r}; use auto, vllm, transformers, openai, or the URL of an endpoint")
