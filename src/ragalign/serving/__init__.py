"""An OpenAI-compatible chat service in front of a base model.

`create_app` makes a FastAPI application to mount or to run; `ragalign serve` runs one. The web framework is imported
only then.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragalign.serving.app import create_app
    from ragalign.serving.settings import Limits, ServingSettings

_HOME = {"Limits": "settings", "ServingSettings": "settings", "create_app": "app"}

__all__ = ["Limits", "ServingSettings", "create_app"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
