"""Reuse in a benchmark: one store in the run folder, which holds what the run's prompts need.

    kv/     keys and values, as `ragalign kv build` keeps them

An engine loads one store, so all recipes of a run that reuse must have the same text before their retrieved
demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragalign._progress import progress
from ragalign.aligner import Aligner
from ragalign.bench.conditions import Condition
from ragalign.errors import ConfigError
from ragalign.generator import Generator
from ragalign.reuse.keeping import keep
from ragalign.reuse.layout import manifest_for, piece_ids
from ragalign.reuse.opening import engine_config
from ragalign.reuse.store import Store
from ragalign.types import Prompt, Query

_FOLDER = "kv"


def store_folder(run: Path) -> Path:
    """The folder of a run's keys and values."""
    return run / _FOLDER


def reusing(conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions that reuse keys and values."""
    return [condition for condition in conditions if condition.recipe.reuse.enabled]


def create_store(run: Path, aligners: Sequence[tuple[Condition, Aligner]]) -> dict[str, Any]:
    """Create or open the store of a run; returns the engine's `kv_transfer_config`.

    Args:
        run: the run's folder.
        aligners: of the conditions that reuse, each with an aligner that packs plain prompts.

    Raises:
        ConfigError: the conditions cannot share a store, or the folder's is for other prompts.
    """
    first, aligner = aligners[0]
    manifest = manifest_for(aligner.packer)
    for other, packs in aligners[1:]:
        if manifest_for(packs.packer) != manifest:
            raise ConfigError(
                f"{first.name!r} and {other.name!r} have different text before their retrieved demonstrations, and an "
                "engine reuses one store: run them separately"
            )
    store = Store.create(store_folder(run), manifest)
    return engine_config(store, first.recipe.reuse)


def bytes_per_token(run: Path) -> float | None:
    """The size of a token's keys and values in a run's store; None if there is none yet."""
    folder = store_folder(run)
    return Store(folder).manifest.bytes_per_token if folder.is_dir() else None


def keep_used(run: Path, aligner: Aligner, queries: Sequence[Query], generator: Generator) -> None:
    """Compute and keep the demonstrations that the prompts of these queries hold, in the run's store.

    Raises:
        GenerationError: the engine failed.
    """
    if aligner.reuse is None:
        return
    used = {
        demonstration.id
        for prompt in aligner.pack_many(queries)
        if isinstance(prompt, Prompt)
        for demonstration in prompt.demonstrations
        if demonstration.score is not None
    }
    pieces = list(piece_ids(aligner.packer, sorted(used)))
    with progress("computing keys and values", len(pieces), "demonstrations") as advance:
        keep(Store(store_folder(run)), generator, pieces, advance)
