"""Starting a generator here or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.generation import BaseGenerator, make_generator


def start_generator(
    backend: str,
    *,
    model: str,
    context_length: int | None = None,
    tokenizer: str | Path | None = None,
    ray: str | None = None,
    workers: int | None = None,
    **options: Any,
) -> BaseGenerator:
    """`ragalign.generation.make_generator`, on a Ray cluster if one is named.

    Args:
        backend: as in `make_generator`.
        model: as in `make_generator`.
        context_length: as in `make_generator`.
        tokenizer: as in `make_generator`.
        options: as in `make_generator`.
        ray: ``local``, ``auto``, an address, or None for this process; see `ragalign.executors.connect`.
        workers: number of engines on the cluster; by default as many as it has GPUs for.

    Raises:
        ConfigError, GenerationError, MissingDependencyError: as `make_generator` and
            `ragalign.executors.RayGenerator`; or workers are given without a cluster.
    """
    if ray is None:
        if workers is not None:
            raise ConfigError("workers needs a Ray cluster: pass ray, such as ray='local'")
        return make_generator(backend, model=model, context_length=context_length, tokenizer=tokenizer, **options)
    from ragalign.executors.generator import RayGenerator

    return RayGenerator(
        model,
        backend=backend,
        address=ray,
        workers=workers,
        context_length=context_length,
        tokenizer=tokenizer,
        **options,
    )
