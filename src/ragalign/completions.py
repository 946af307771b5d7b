"""Completion files: answers as JSON Lines, resumable, with one recipe and model per file.

There is one line per query, appended as soon as the query is answered::

    {"id": "q1", "instruction": "...", "response": "...", "finish_reason": "stop", ..., "recipe": "ica",
     "model": "...", "query": "5f0c...", "run": "a41b..."}

``query`` is the fingerprint of the whole conversation, and ``run`` that of the settings; see
`ragalign.runs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from ragalign._progress import progress
from ragalign.aligner import Aligner, Failure
from ragalign.errors import DataError
from ragalign.indexes import DiskIndex, Index, Manifest
from ragalign.recipes import Recipe
from ragalign.runs import OutputFile, fingerprint
from ragalign.types import Completion, Decoding, Query

QUERY = "query"
_KEYS = ("id", "instruction", "response", QUERY)


@dataclass(frozen=True, slots=True)
class CompletionReport:
    """The outcome of `CompletionFile.generate`: completions written, already present, and failures."""

    n_written: int
    n_present: int
    failures: tuple[Failure, ...]


class CompletionFile:
    """A file of completions for some queries, locked until it is closed; a context manager.

    Args:
        path: a JSON Lines file, created if missing. It can hold completions of other queries.
        queries: the queries to answer.
        settings: everything that determines the answers, such as `generation_settings`.
        record: whether to save the settings beside the file; a run folder saves them for its files.

    Attributes:
        missing: the queries without a completion, in input order.
        n_present: number of queries with a completion.

    Raises:
        ConfigError: the file was made with other settings; the message names them.
        DataError: the file holds something else, a query's text has changed, an id occurs twice, or another
            process is writing the file. The file is not changed.
    """

    def __init__(
        self, path: str | Path, queries: Sequence[Query], settings: Mapping[str, Any], *, record: bool = True
    ) -> None:
        self.path = Path(path)
        asked: dict[str, Query] = {}
        for query in queries:
            if asked.setdefault(query.id, query) is not query:
                raise DataError(f"two queries have the id {query.id!r}; make the ids unique")
        self._file = OutputFile(self.path, settings, _KEYS, record=record)
        try:
            present = _check(self.path, self._file.rows, asked)
        except BaseException:
            self.close()
            raise
        self.missing = [query for query in queries if query.id not in present]
        self.n_present = len(queries) - len(self.missing)

    def generate(self, aligner: Aligner, *, generator: str | None = None) -> CompletionReport:
        """Answer the missing queries. Failures are not written, so a later run retries them.

        Args:
            aligner: answers the queries, with its decoding parameters.
            generator: the name that judges see for these answers; the model's by default.

        Raises:
            DataError: the file cannot be written, or it holds completions of another recipe or model.
            GenerationError: the generator failed as a whole; finished answers are in the file.
        """
        made_by = {"recipe": aligner.name, "model": aligner.generator.model}
        made_by |= {"generator": generator} if generator is not None else {}
        self._require_same(made_by)
        asked, failures = self.missing, []
        answered: set[str] = set()
        with progress("generating", len(asked), "queries") as advance:
            for position, result in aligner.iter_generate(asked) if asked else ():
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    query = asked[position]
                    self._file.append(_record(query, result) | made_by | {QUERY: query_fingerprint(query)})
                    answered.add(query.id)
                advance(1)
        report = CompletionReport(len(answered), self.n_present, tuple(failures))
        self.missing = [query for query in asked if query.id not in answered]
        self.n_present += len(answered)
        return report

    def _require_same(self, made_by: Mapping[str, str]) -> None:
        """Check that the file's answers come from the same recipe and model."""
        for number, row in enumerate(self._file.rows, start=1):
            for key, value in made_by.items():
                if row.get(key, value) != value:
                    raise DataError(
                        f"{self.path}, line {number}: made with the {key} {row[key]!r}, not {value!r}; "
                        "choose another output"
                    )

    def close(self) -> None:
        """Unlock the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def generation_settings(
    recipe: Recipe, decoding: Decoding, model: str, index: Index | DiskIndex | None = None, **others: Any
) -> dict[str, Any]:
    """Everything that determines a recipe's answers: its content, decoding, model and index.

    Args:
        recipe: the recipe; files that it names count by their content.
        decoding: the decoding parameters in use.
        model: the model's name, as given.
        index: the index that the recipe retrieves from.
        others: further settings, such as the backend.

    Raises:
        ConfigError, DataError: a file that the recipe names is missing or invalid.
    """
    content = {**recipe.content(), "decoding": asdict(decoding)}
    return {
        "recipe": {"name": recipe.name, **content},
        "model": model,
        **({"index": index_settings(index)} if index is not None else {}),
        **others,
    }


def index_settings(index: Index | DiskIndex) -> dict[str, Any]:
    """The settings that identify an index, as JSON values."""
    about = index.manifest
    encoder = about.encoder
    return {
        "pool": index.pool.fingerprint,
        "n": len(index),
        "encoder": encoder and encoder.id,
        "encoder_fingerprint": encoder and encoder.fingerprint,
        "text": about.text,
        "metric": about.metric,
        "factory": about.factory,
        "search": dict(about.search) if isinstance(about, Manifest) else {},
    }


def query_fingerprint(query: Query) -> str:
    """The fingerprint of a conversation, over all its turns."""
    return fingerprint([[turn.role, turn.content] for turn in query.turns])


def _check(path: Path, rows: Sequence[Mapping[str, Any]], asked: Mapping[str, Query]) -> set[str]:
    """Return the ids that have a completion.

    Raises:
        DataError: an id was asked with another text, or has two completions.
    """
    lines: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        id_ = str(row["id"])
        first = lines.setdefault(id_, number)
        if first != number:
            raise DataError(
                f"{path}, line {number}: answers {id_!r} a second time (first in line {first}); remove one of the lines"
            )
        query = asked.get(id_)
        if query is not None and row[QUERY] != query_fingerprint(query):
            raise DataError(
                f"{path}, line {number}: the query {id_!r} was {_difference(str(row['instruction']), query)}; "
                "choose another output, or give the query another id"
            )
    return set(lines)


def _difference(instruction: str, query: Query) -> str:
    if instruction == query.text:
        return "asked after other turns"
    before, now = _brief(instruction, query.text), _brief(query.text, instruction)
    return f"{before!r} and is {now!r}"


def _brief(text: str, other: str) -> str:
    """The beginning of a text, or the place where two long texts start to differ."""
    same = next((n for n, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, same - 20) if same > 40 else 0
    return ("..." if start else "") + text[start : start + 60] + ("..." if len(text) > start + 60 else "")


def _record(query: Query, completion: Completion) -> dict[str, Any]:
    record: dict[str, Any] = {"id": query.id, "instruction": query.text, "response": completion.text}
    if len(completion.outputs) > 1:
        record["responses"] = [output.text for output in completion.outputs]
    return record | {
        "finish_reason": completion.finish_reason,
        "n_prompt_tokens": completion.n_prompt_tokens,
        "n_cached_tokens": completion.n_cached_tokens,
        "n_reused_tokens": completion.n_reused_tokens,
        "n_output_tokens": completion.n_output_tokens,
        "latency_s": round(completion.latency_s, 4),
        "first_token_s": None if completion.first_token_s is None else round(completion.first_token_s, 5),
        "demonstrations": [used.id for used in completion.prompt.demonstrations],
    }
