"""Finding a recipe's store, and checking that it belongs to the prompts and the model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragalign._optional import is_installed
from ragalign.errors import ConfigError
from ragalign.packing import Packer
from ragalign.reuse.engine_side import check_parallel
from ragalign.reuse.fingerprint import weights_fingerprint
from ragalign.reuse.keeping import connector_config
from ragalign.reuse.layout import ReusingPacker, manifest_for
from ragalign.reuse.rotation import rotations
from ragalign.reuse.settings import ReuseSettings, n_bytes
from ragalign.reuse.store import Store


def default_store(index: str | Path, recipe: str, model: str | Path) -> Path:
    """The folder beside an index for one recipe and model."""
    name = re.sub(r"[^\w.-]+", "-", Path(os.path.normpath(str(model))).name).strip("-.") or "model"
    return Path(f"{os.path.normpath(index)}.kv") / f"{recipe}-{name}"


def open_store(folder: str | Path, packer: Packer) -> Store:
    """A store for this packer's prompts.

    Raises:
        ConfigError: it was made for other prompts.
        DataError: there is none, or it is damaged.
    """
    store = Store(folder)
    store.check(manifest_for(packer, store.manifest.precision))
    return store


def reusing(packer: Packer, store: Store, settings: ReuseSettings) -> ReusingPacker:
    """The packer, with a recipe's settings."""
    return ReusingPacker(packer, store, settings.real)


def engine_config(store: Store, settings: ReuseSettings) -> dict[str, Any]:
    """The engine's `kv_transfer_config` for a recipe's settings."""
    return connector_config(
        store.folder,
        memory=n_bytes(settings.memory, "[reuse] memory"),
        gpu_memory=n_bytes(settings.gpu_memory, "[reuse] gpu_memory"),
    )


def check_model(model: str | Path, context_length: int | None = None, options: Mapping[str, Any] | None = None) -> None:
    """Check, before an engine starts, that the model's keys can be moved, and loaded with these options of the engine.

    Raises:
        ConfigError: they cannot; the message names the model type, or the option, and the reason.
    """
    from transformers import AutoConfig

    from ragalign.models import locate_model

    located = locate_model(model)
    try:
        config = AutoConfig.from_pretrained(located)
    except (OSError, ValueError):
        return  # the engine supports more models than Transformers, or reports the problem better
    text = config.get_text_config()
    rotations(config, max_model_len=context_length or getattr(text, "max_position_embeddings", None))
    check_parallel(getattr(text, "num_key_value_heads", None) or text.num_attention_heads, options or {})


def check_same_model(store: Store, model: str | Path, dtype: str | None = None) -> None:
    """Check, before an engine starts, that a store was computed with this model's weights and dtype.

    The engine checks everything else. Weights whose size and time the store remembers are not read again.

    Raises:
        ConfigError: it was computed with others.
    """
    from ragalign.models import locate_model

    recorded = store.manifest.model
    if recorded is None:
        return
    found: dict[str, Any] = {}
    if dtype in ("float32", "float16", "bfloat16"):
        found["dtype"] = dtype
    folder = Path(locate_model(model))
    if folder.is_dir() and not str(recorded["weights"]).startswith("dummy"):
        found["weights"], _ = weights_fingerprint(folder, (store.manifest.about or {}).get("files", {}))
    store.bind({**recorded, **found})


def can_reuse(backend: str) -> bool:
    """Whether the backend is vLLM in this process, the only one that can load kept keys and values."""
    return backend == "vllm" or (backend == "auto" and is_installed("vllm"))


def check_backend(backend: str) -> None:
    """Check that the backend can load kept keys and values.

    Raises:
        ConfigError: the backend is not vLLM in this process.
    """
    if backend == "auto" and not can_reuse(backend):
        raise ConfigError("[reuse] needs vLLM, which is not installed; install it, or leave [reuse] out")
    if not can_reuse(backend):
        raise ConfigError(f"[reuse] needs the backend vllm, not {backend!r}; leave [reuse] out or change the backend")
