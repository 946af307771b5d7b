"""The answers of a benchmark's conditions, and where a run folder keeps them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragalign.bench.conditions import Condition
from ragalign.bench.likelihood import Key, Row
from ragalign.runs import LineFile


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers of a condition.

    Attributes:
        condition: the condition.
        rows: its completions by turn (from 0), each by the case's id; a case that failed is missing.
        likelihoods: how likely the model finds the references, by turn (from 1) and the case's id, where measured.
        bytes_per_reused_token: size of a token's kept keys and values; None without reuse.
    """

    condition: Condition
    rows: tuple[Mapping[str, Mapping[str, Any]], ...]
    likelihoods: Mapping[Key, Row] = field(default_factory=dict)
    bytes_per_reused_token: float | None = None

    def requests(self) -> Iterator[Mapping[str, Any]]:
        """The completions of all turns."""
        for turn in self.rows:
            yield from turn.values()


def condition_folders(conditions: Sequence[Condition]) -> dict[str, Path]:
    """The folder of each condition within a run folder: its name, as far as file names allow."""
    places = {}
    for condition in conditions:
        plain = re.sub(r"[^\w.+=-]+", "-", condition.name).strip("-.")[:80]
        if plain != condition.name:
            # Keep names apart that differ only in replaced characters or past the cut.
            plain = f"{plain}-{hashlib.sha256(condition.name.encode()).hexdigest()[:6]}"
        places[condition.name] = Path("conditions") / plain
    return places


def read_answers(path: Path) -> dict[str, Mapping[str, Any]]:
    """The rows of a file by id, without an unfinished last line."""
    return {str(row["id"]): row for row in LineFile(path, ("id",)).read()}
