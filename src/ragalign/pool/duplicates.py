"""Finds demonstrations whose instructions say the same: exactly, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ragalign.errors import ConfigError
from ragalign.text import normalise


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A demonstration that repeats an earlier one. `similarity` is 1.0 where the normalised texts are equal."""

    id: str
    duplicate_of: str
    similarity: float


def find_duplicates(ids: Sequence[str], instructions: pa.ChunkedArray, near: float | None) -> tuple[Duplicate, ...]:
    """Exact and near duplicates, in pool order; `Pool.duplicates` documents the arguments."""
    if near is not None and not 0 < near <= 1:
        raise ConfigError(f"near is {near}, but a similarity is above 0 and at most 1; 0.8 is a usual choice")
    first: dict[str, int] = {}
    found = []
    for position, instruction in enumerate(instructions.to_pylist()):
        earlier = first.setdefault(normalise(instruction), position)
        if earlier != position:
            found.append(Duplicate(ids[position], ids[earlier], 1.0))
    return tuple(found)
