"""Files of a run folder: answers of the aligned model, and readings of the base model in each context."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.completions import QUERY, query_fingerprint
from ragalign.errors import ConfigError, DataError
from ragalign.generation.distributions import Distributions
from ragalign.indexes.store import read_manifest
from ragalign.recipes import Recipe
from ragalign.runs import LineFile, RunFolder, fingerprint
from ragalign.studies.shift.record import AlignedAnswer
from ragalign.types import Query

_CONTEXT = "context"


class ShiftFiles:
    """Reads and appends answers and readings, and rejects rows of other queries or recipes.

    Args:
        run: the run folder, claimed by the caller.
        contexts: the recipe of each context by name; an empty string for the aligned model's own prompts.
        index: the index folder that recipes retrieve from.
    """

    def __init__(self, run: RunFolder, contexts: Mapping[str, str], index: str | None) -> None:
        self._spool = run.path / "distributions"
        self._contexts = {
            name: fingerprint(context_settings(recipe, index) if recipe else "") for name, recipe in contexts.items()
        }
        self._answers = run.lines("answers.jsonl", ("id", "instruction", "prompt_text", "token_ids", QUERY))
        self._readings = {name: run.lines(f"context-{name}.jsonl", ("id", _CONTEXT)) for name in contexts}

    def answers(self, queries: Sequence[Query]) -> dict[str, AlignedAnswer]:
        """The answers so far, by query id.

        Raises:
            DataError: the file has another form, or a query was asked with another text.
        """
        asked = {query.id: query for query in queries}
        found = {}
        for number, row in enumerate(self._answers.read(), start=1):
            query = asked.get(row["id"])
            if query is not None and row.pop(QUERY) != query_fingerprint(query):
                raise DataError(
                    f"{self._answers.path}, line {number}: the query {query.id!r} was asked as "
                    f"{row['instruction'][:60]!r} and is {query.text[:60]!r}; choose another folder, or give the "
                    "query another id"
                )
            row.pop(QUERY, None)
            found[str(row["id"])] = _answer(self._answers, number, row)
        return found

    def add_answer(self, answer: AlignedAnswer, query: Query) -> None:
        """Append an answer."""
        self._answers.append(answer.to_dict() | {QUERY: query_fingerprint(query)})

    def readings(self, context: str) -> list[dict[str, Any]]:
        """The rows of a context: readings, or the reason why an answer could not be read.

        Raises:
            ConfigError: they are of another recipe with this name, or of another index.
            DataError: the file has another form.
        """
        file = self._readings[context]
        rows = file.read()
        for number, row in enumerate(rows, start=1):
            if row[_CONTEXT] != self._contexts[context]:
                raise ConfigError(
                    f"{file.path}, line {number}: made with another recipe {context!r}, or another index; "
                    "choose another folder, or give the recipe another name"
                )
        return rows

    def add_reading(self, context: str, row: Mapping[str, Any]) -> None:
        """Append a row of a context."""
        self._readings[context].append({**row, _CONTEXT: self._contexts[context]})

    def has_distributions(self, id_: str) -> bool:
        """Whether the distributions of an answer are saved."""
        return self._distributions(id_).exists()

    def save_distributions(self, id_: str, shown: Distributions) -> None:
        """Save the aligned model's distributions at an answer's tokens, until all contexts have been read."""
        path = self._distributions(id_)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        with temporary.open("wb") as file:
            np.savez(file, **shown.arrays())  # type: ignore[arg-type]
        temporary.replace(path)

    def load_distributions(self, id_: str) -> Distributions:
        """Load the distributions saved by `save_distributions`."""
        with np.load(self._distributions(id_)) as arrays:
            return Distributions(**dict(arrays))

    def clear_distributions(self) -> None:
        """Delete all saved distributions."""
        shutil.rmtree(self._spool, ignore_errors=True)

    def _distributions(self, id_: str) -> Path:
        # Hash the id, which can have characters that file names cannot.
        return self._spool / f"{hashlib.sha256(id_.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.npz"


def context_settings(recipe: str, index: str | None) -> dict[str, Any]:
    """The content of a recipe, and of its index if it retrieves, as JSON values."""
    loaded = Recipe.load(recipe)
    settings = {"name": loaded.name, **loaded.content()}
    if index is not None and loaded.retriever.name != "none":
        settings["index"] = read_manifest(Path(index)).checksum
    return settings


def _answer(file: LineFile, number: int, row: Mapping[str, Any]) -> AlignedAnswer:
    try:
        return AlignedAnswer.from_dict(row)
    except TypeError:
        raise DataError(f"{file.path}, line {number}: not an answer; choose another folder") from None
