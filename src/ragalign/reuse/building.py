"""Filling a store with the pieces that a pool needs, and removing all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ragalign._progress import progress
from ragalign.errors import DataError
from ragalign.generator import Generator
from ragalign.packing import Packer
from ragalign.reuse.keeping import keep, missing
from ragalign.reuse.layout import piece_ids
from ragalign.reuse.pieces import DamagedPieceError, piece_name
from ragalign.reuse.store import Store


@dataclass(frozen=True, slots=True)
class Built:
    """The result of `build`: pieces computed, already present, and removed because the pool no longer has them."""

    n_computed: int
    n_present: int
    n_removed: int


def build(store: Store, packer: Packer, generator: Generator) -> Built:
    """Compute and keep the pieces of a packer's pool; call it again to resume after an interruption.

    Torn files, such as those that a full disk leaves, are computed again. Hold `Store.writing` meanwhile.

    Raises:
        GenerationError: the engine failed.
    """
    store.clean()
    pieces = list(piece_ids(packer))
    with progress("computing keys and values", len(pieces), "demonstrations") as advance:
        n_computed = keep(store, generator, pieces, advance)
    n_removed = prune(store, packer, pieces)
    return Built(n_computed, len({piece_name(ids) for ids in pieces}) - n_computed, n_removed)


def prune(store: Store, packer: Packer, pieces: list[list[int]] | None = None) -> int:
    """Remove pieces of other demonstrations than the pool's; returns how many."""
    wanted = {piece_name(ids) for ids in (piece_ids(packer) if pieces is None else pieces)} | {store.prefix_name}
    extra = [name for name in store.names() if name not in wanted]
    for name in extra:
        store.remove(name)
    return len(extra)


def n_missing(store: Store, packer: Packer) -> int:
    """How many pieces of the packer's pool the store lacks."""
    return len(missing(store, piece_ids(packer)))


def info(store: Store) -> dict[str, Any]:
    """A summary of a store's content."""
    names = list(store.names())
    n_bytes = sum(store.path(name).stat().st_size for name in names)
    manifest = store.manifest
    return {
        "store": str(store.folder),
        "key": store.key,
        "n_pieces": len(names),
        "n_bytes": n_bytes,
        "n_prefix_tokens": len(manifest.prefix_ids),
        "precision": manifest.precision,
        "model": dict(manifest.model or {}),
        "template": manifest.template,
        "tokenizer": manifest.tokenizer,
        "about": {name: value for name, value in (manifest.about or {}).items() if name != "files"},
    }


def verify(store: Store) -> list[str]:
    """Read every piece and compare it with its hash; returns one line per problem.

    Damaged pieces are set aside, so that the next build computes them again.
    """
    faults = []
    names = list(store.names())
    with progress("verifying", len(names), "pieces") as advance:
        for name in names:
            try:
                store.read(name)
            except DataError as error:
                faults.append(str(error))
                if isinstance(error, DamagedPieceError):  # others can be readable again later
                    store.set_aside(name)
            advance(1)
    return faults
