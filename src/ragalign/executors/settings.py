"""Settings of this process that its workers need too, wherever their nodes were started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FOLDERS = ("RAGALIGN_CACHE", "HF_HOME", "HF_HUB_CACHE")
_VALUES = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_CPU_KVCACHE_SPACE")
_SECRETS = ("HF_TOKEN",)


def shared_settings() -> dict[str, Any]:
    """Options of an actor that give it the settings of this process; without any, none.

    A process with an environment of its own starts about half a second later, since Ray has none in stock.
    """
    # Workers start in other folders.
    found = {name: str(Path(value).expanduser().absolute()) for name, value in _set(_FOLDERS).items()}
    found |= _set(_VALUES)
    return {"runtime_env": {"env_vars": found}} if found else {}


def secrets() -> dict[str, str]:
    """The secrets of this process, to pass to a method: Ray writes the environments of actors into its logs."""
    return _set(_SECRETS)


def receive_secrets(given: Mapping[str, str]) -> None:
    """Set secrets in a worker, before anything that needs them is loaded."""
    os.environ.update(given)


def _set(names: tuple[str, ...]) -> dict[str, str]:
    return {name: value for name in names if (value := os.environ.get(name))}
