"""Computing missing pieces with the engine: one forward pass each, directly after the prefix."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.errors import GenerationError
from ragalign.generator import Generator
from ragalign.reuse.pieces import piece_name
from ragalign.reuse.store import KeptPieces, Store
from ragalign.reuse_plan import ReusePlan
from ragalign.types import Decoding, Prompt

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
    if store.manifest.prefix_ids and not store.has(store.prefix_name):
        generator.generate([keeping_prompt(store)], _ONE_TOKEN)
        if not store.has(store.prefix_name):
            raise GenerationError(f"the engine kept nothing in {store.folder}; was it started with this store?")
    wanted = missing(store, pieces)
    advance(len(pieces) - len(wanted))
    prompts = [keeping_prompt(store, ids) for ids in wanted]
    for _ in generator.iter_generate(prompts, _ONE_TOKEN):
        advance(1)
    if lost := missing(store, wanted):
        raise GenerationError(f"{store.folder}: {len(lost)} of {len(wanted)} pieces were not kept; see the log")
    return len(wanted)


def keeping_prompt(store: KeptPieces, ids: Sequence[int] = ()) -> Prompt:
    """A prompt at whose end an engine computes and keeps a piece; without `ids`, the prefix itself."""
    prefix = store.manifest.prefix_ids
    plan = ReusePlan(store.key, len(prefix), (len(ids),) if ids else (), keep=uuid.uuid4().hex)
    return Prompt(pieces=(), ids=np.asarray([*prefix, *ids], dtype=np.int32), reuse=plan)
