"""Demonstrations as texts, in the form that an encoder reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration


def indexed_texts(index: Index, pool: Pool | None = None) -> list[str]:
    """The texts that the index encodes, for each demonstration of ``pool`` (by default the index's own)."""
    pool = pool if pool is not None else index.pool
    return pool.instructions if index.manifest.text == "instruction" else texts_in_form("both", pool)


def texts_in_form(text: Literal["instruction", "both"], demonstrations: Iterable[Demonstration]) -> list[str]:
    """The instructions, or the instructions with their responses."""
    if text == "instruction":
        return [one.instruction for one in demonstrations]
    return [f"{one.instruction}\n\n{one.response}" for one in demonstrations]
