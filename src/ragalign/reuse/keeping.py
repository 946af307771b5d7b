"""Computing missing pieces with the engine: one forward pass each, directly after the prefix."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.errors import GenerationError
from ragalign.reuse.pieces import piece_name
from ragalign.reuse.store import Store
from ragalign.reuse_plan import ReusePlan
from ragalign.types import Decoding, Generator, Prompt

# Pieces per call of the engine: progress is shown, and an interruption noticed, after each.
_BATCH = 64
_ONE_TOKEN = Decoding(max_tokens=1)


def connector_config(folder: str | Path, *, memory: int = 0, gpu_memory: int = 0) -> dict[str, Any]:
    """The engine's `kv_transfer_config` with which it reuses what is in a store.

    Args:
        folder: the store's.
        memory: bytes of host memory for the pieces used most recently.
        gpu_memory: the same in GPU memory.
    """
    return {
        "kv_connector": "ReuseConnector",
        "kv_connector_module_path": "ragalign.reuse.connector",
        "kv_role": "kv_both",
        # Compute what cannot be loaded instead of failing the request.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "store": str(Path(folder).absolute()),
            "memory": memory,
            "gpu_memory": gpu_memory,
        },
    }


def missing(store: Store, pieces: Iterable[Sequence[int]]) -> list[list[int]]:
    """Token ids of the pieces that the store lacks, each once."""
    found = {piece_name(ids): list(ids) for ids in pieces if len(ids)}
    return [ids for name, ids in found.items() if not store.has(name)]


def keep(store: Store, generator: Generator, pieces: Sequence[Sequence[int]], advance: Callable[[int], None]) -> int:
    """Compute pieces and write them to the store; existing ones are left unchanged.

    Args:
        store: where to.
        generator: an engine that was started with `connector_config` of this store.
        pieces: token ids of demonstrations, as they are in prompts.
        advance: told how many pieces are done.

    Returns:
        How many were computed.

    Raises:
        GenerationError: the engine failed, or kept nothing.
    """
    prefix = list(store.manifest.prefix_ids)
    if prefix and not store.has(store.prefix_name):
        generator.generate([_keeping(store, prefix, ())], _ONE_TOKEN)
        if not store.has(store.prefix_name):
            raise GenerationError(f"the engine kept nothing in {store.folder}; was it started with this store?")
    wanted = missing(store, pieces)
    advance(len(pieces) - len(wanted))
    for batch in _batches(wanted, _BATCH):
        generator.generate([_keeping(store, [*prefix, *ids], (len(ids),)) for ids in batch], _ONE_TOKEN)
        if lost := missing(store, batch):
            raise GenerationError(f"{store.folder}: {len(lost)} of {len(batch)} pieces were not kept; see the log")
        advance(len(batch))
    return len(wanted)


def _keeping(store: Store, ids: Sequence[int], lengths: tuple[int, ...]) -> Prompt:
    """A prompt whose last part is computed and kept."""
    plan = ReusePlan(store.key, len(store.manifest.prefix_ids), lengths, keep=uuid.uuid4().hex)
    return Prompt(pieces=(), ids=np.asarray(ids, dtype=np.int32), reuse=plan)


def _batches(items: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    left = iter(items)
    while batch := list(islice(left, size)):
        yield batch
