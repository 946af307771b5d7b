"""Reads queries: the conversations that are to be answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError, DataError
from ragalign.pool.readers import read_file
from ragalign.pool.report import Unit, location
from ragalign.pool.rows import Problem, Rows
from ragalign.pool.table import check_surrogates, check_text
from ragalign.questions import BadRowError, is_empty, kind, read_question
from ragalign.types import Query

QUERY_FIELDS = ("instruction", "input", "system", "history", "conversations", "id")
FURTHER_TURNS = "turns"
"""The metadata field of a query that holds what the user says after the first answer, a list of texts."""

_ID_FIELDS = ("id", "question_id", "prompt_id", "uid")


def read_queries(
    path: str | Path, *, fields: Mapping[str, str] | None = None, metadata: Collection[str] = ()
) -> list[Query]:
    """Read JSON Lines (or any other file that a pool can be read from) with one query per row.

    `ragalign.questions` says what a row asks. A row's id is its `id` (`question_id`, `prompt_id` or `uid`); without
    one, its line number. All other fields become the query's metadata. Where a row has more turns of the user's after
    an answer, the query is the first of them and the others are in the metadata, under ``turns``.

    Args:
        path: the file, plain or compressed with gzip; ``-`` is standard input.
        fields: the rows' own field names, such as ``{"instruction": "title"}``; keys from `QUERY_FIELDS`.
        metadata: fields that are no part of a question, whatever their names.

    Raises:
        DataError: the file cannot be read, a row is no query, or an id comes twice.
        ConfigError: an unknown key in `fields`.
    """
    unit, rows = read_file(path)
    name = "standard input" if str(path) == "-" else str(path)
    return as_queries(rows, name, unit, fields=fields, metadata=metadata)


def as_queries(
    rows: Rows,
    name: str,
    unit: Unit,
    *,
    fields: Mapping[str, str] | None = None,
    metadata: Collection[str] = (),
) -> list[Query]:
    """The queries in rows of any origin, as `read_queries`; `name` and `unit` are for messages.

    Raises:
        DataError: a row is no query, an id comes twice, or there is none.
        ConfigError: an unknown key in `fields`.
    """
    names = dict(fields or {})
    if unknown := [each for each in names if each not in QUERY_FIELDS]:
        raise ConfigError(f"unknown field {unknown[0]!r} of a query: name one of {', '.join(QUERY_FIELDS)}")
    queries: list[Query] = []
    lines: dict[str, int] = {}
    for number, row in rows:
        where = location(name, number, unit)
        try:
            query = _query(row, number, names, metadata)
        except BadRowError as error:
            raise DataError(f"{where}: {error.reason}; {error.advice or 'correct the row'}") from None
        first = lines.setdefault(query.id, number)
        if first != number:
            raise DataError(f"{where}: the id {query.id!r} was used before, in {unit} {first}; give each query its own")
        queries.append(query)
    if not queries:
        raise DataError(f"{name}: there are no queries in it; give a file with at least one row")
    return queries


def unused_fields(queries: Iterable[Query], asked: Collection[str] = ()) -> dict[str, int]:
    """Fields that are no part of any question: how many queries have something in each.

    Args:
        queries: as `read_queries` gives them.
        asked: fields that are known to be metadata.
    """
    counts = Counter(
        name
        for query in queries
        for name, value in query.metadata.items()
        if name not in asked and name != FURTHER_TURNS and not is_empty(value)
    )
    return dict(counts)


def _query(row: dict[str, Any] | Problem, number: int, names: Mapping[str, str], metadata: Collection[str]) -> Query:
    if isinstance(row, Problem):
        raise BadRowError(row.reason)
    ids = (names["id"],) if "id" in names else _ID_FIELDS
    id_field = next((field for field in ids if not is_empty(row.get(field))), None)
    id_value = number if id_field is None else _id(id_field, row[id_field])
    question = read_question(row, names=names, metadata=metadata)
    is_flat = len(question.turns) == 1 and not question.further
    for at, turn in enumerate(question.turns, 1):
        check_text("instruction" if is_flat else f"content of turn {at}", turn.content)
    for text in question.further:
        check_text("content of a later turn", text)
    used = {*question.used, ids[0], id_field}
    rest = {name: value for name, value in row.items() if name not in used}
    if question.further:
        rest[FURTHER_TURNS] = list(question.further)
    others = () if question.bare == question.text else (question.bare,)
    return Query(str(id_value), question.turns, rest, others)


def _id(name: str, value: object) -> str | int:
    if isinstance(value, float) and value.is_integer():  # pandas turns whole numbers with gaps into floats
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"the field {name!r} is {kind(value)}, neither text nor a whole number")
    check_surrogates("the id", str(value))
    return value
