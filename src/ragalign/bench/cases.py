"""The prompts of a benchmark: published prompt sets by name, or a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ragalign._sources import STANDARD_INPUT
from ragalign.errors import ConfigError
from ragalign.measures.instructions import BENCHMARKS
from ragalign.pool.hub import fetch_file, read_dataset
from ragalign.pool.queries import FURTHER_TURNS, as_queries
from ragalign.pool.readers import read_file
from ragalign.pool.report import Unit
from ragalign.pool.rows import Rows
from ragalign.types import Query, Turn

# The sources of the sets. Those with a file could only be loaded as datasets by their own script.
_PUBLISHED: Mapping[str, tuple[str, str | None]] = {
    "alpaca-eval": ("tatsu-lab/alpaca_eval", "alpaca_eval.json"),
    "mt-bench": ("HuggingFaceH4/mt_bench_prompts:train", None),
    "just-eval": ("re-align/just-eval-instruct:test", None),
    "lima-test": ("GAIR/lima", "test.jsonl"),
    "ifeval": ("google/IFEval:train", None),
    "ifbench": ("allenai/IFBench_test:train", None),
}
PROMPT_SETS = tuple(_PUBLISHED)


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt, possibly with further turns.

    Attributes:
        query: the conversation up to the first answer; its id is the case's.
        further: the user's later turns, as texts.
        references: good answers, one list of alternatives per turn; empty if unknown.
        category: the kind of prompt, such as MT-Bench's ``math``.
    """

    query: Query
    further: tuple[str, ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    category: str | None = None

    @property
    def id(self) -> str:
        """The query's."""
        return self.query.id

    @property
    def turns(self) -> tuple[str, ...]:
        """The user's turns, from the first one to answer."""
        return (self.query.text, *self.further)

    def query_of(self, turn: int, answers: Sequence[str]) -> Query:
        """The query of a turn (from 1), given the answers to earlier turns."""
        turns = list(self.query.turns)
        for answer, text in zip(answers, self.further[: turn - 1], strict=True):
            turns += [Turn("assistant", answer), Turn("user", text)]
        return replace(self.query, turns=tuple(turns))


@dataclass(frozen=True, slots=True)
class Cases:
    """A prompt set: its name and its cases, with unique ids."""

    name: str
    cases: tuple[Case, ...]

    @property
    def n_turns(self) -> int:
        """The number of turns of the longest case."""
        return max(len(case.turns) for case in self.cases)

    @property
    def fingerprint(self) -> str:
        """A hash of the ids and texts, in order."""
        seen = [
            [case.id, [[turn.role, turn.content] for turn in case.query.turns], case.further] for case in self.cases
        ]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]

    def first(self, n: int | None) -> Cases:
        """Return the first `n` cases, or all if None.

        Raises:
            ConfigError: the number is less than 1.
        """
        if n is not None and n < 1:
            raise ConfigError(f"at least one prompt is needed, not {n}")
        return self if n is None else replace(self, cases=self.cases[:n])


def load_cases(
    name_or_file: str | Path, *, fields: Mapping[str, str] | None = None, metadata: Collection[str] = ()
) -> Cases:
    """Load a published prompt set by name, or a file.

    Rows are those of `ragalign.pool.queries.read_queries`. ``reference`` is a good answer, or a list of them:
    alternatives if there is one turn, one per turn if there are several.

    Args:
        name_or_file: a set's name, a file, or ``-`` for standard input.
        fields: as in `ragalign.pool.queries.read_queries`.
        metadata: as in `read_queries`.

    Raises:
        ConfigError: it is neither a file nor the name of a set, or an unknown key in `fields`.
        DataError: it cannot be read, or a row is not a query.
    """
    name = str(name_or_file)
    rows: Rows
    unit: Unit
    if name in _PUBLISHED:
        source, file = _PUBLISHED[name]
        unit, rows = ("row", read_dataset(source)) if file is None else read_file(fetch_file(source, file))
        fields = {"id": "key", **(fields or {})} if name in BENCHMARKS else fields
    elif Path(name).suffix or name == STANDARD_INPUT:
        unit, rows = read_file(name)
    else:
        raise ConfigError(f"no prompt set {name!r}: use one of {', '.join(PROMPT_SETS)}, or a file of prompts")
    label = "standard input" if name == STANDARD_INPUT else name
    return Cases(Path(label).name, tuple(map(_case, as_queries(rows, label, unit, fields=fields, metadata=metadata))))


def _case(query: Query) -> Case:
    metadata = dict(query.metadata)
    further = tuple(metadata.pop(FURTHER_TURNS, ()))
    given = metadata.get("reference")
    category = metadata.get("category", metadata.get("dataset"))
    texts = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    texts = [text for text in texts if isinstance(text, str)]
    references = tuple((text,) for text in texts) if further else (tuple(texts),) if texts else ()
    return Case(replace(query, metadata=metadata), further, references, category if isinstance(category, str) else None)
