"""Demonstrations as texts, in the form that an index encodes."""

from __future__ import annotations

from ragalign.indexes import Index
from ragalign.pool import Pool


def indexed_texts(index: Index, pool: Pool | None = None) -> list[str]:
    """The texts that the index encodes, for each demonstration of ``pool`` (by default the index's own)."""
    pool = pool if pool is not None else index.pool
    if index.manifest.text == "instruction":
        return pool.instructions
    return [f"{first}\n\n{second}" for first, second in zip(pool.instructions, pool.responses, strict=True)]
