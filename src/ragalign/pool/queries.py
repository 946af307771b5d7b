"""Reading query files: the conversations to answer."""

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
"""The metadata field with the user's later turns, a list of texts."""

_ID_FIELDS = ("id", "question_id", "prompt_id", "uid")


def read_queries(
    path: str | Path, *, fields: Mapping[str, str] | None = None, metadata: Collection[str] = ()
) -> list[Query]:
    """Read a query file: one query per row, in any format that a pool can be read from.

    `ragalign.questions` reads the question of a row. The id is the row's `id`, `question_id`, `prompt_id` or `uid`, or
    else its line number. All other fields become the query's metadata. If a row has several user turns, the query ends
    with the first one, and the metadata has the others under ``turns``.

    Args:
        path: the file, plain or gzip-compressed; ``-`` is standard input.
        fields: names of the rows' fields, such as ``{"instruction": "title"}``; keys from `QUERY_FIELDS`.
        metadata: fields that are never part of a question.

    Raises:
        DataError: the file cannot be read, a row is not a query, or an id occurs twice.
        ConfigError: `fields` has an unknown key.
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
    """Read queries from rows, like `read_queries`; `name` and `unit` are for messages.

    Raises:
        DataError: a row is not a query, an id occurs twice, or there are no rows.
        ConfigError: `fields` has an unknown key.
    """
    names = dict(fields or {})
    if unknown := [each for each in names if each not in QUERY_FIELDS]:
        raise ConfigError(f"unknown query field {unknown[0]!r}: use one of {', '.join(QUERY_FIELDS)}")
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
            raise DataError(f"{where}: the id {query.id!r} was already used in {unit} {first}; make the ids unique")
        queries.append(query)
    if not queries:
        raise DataError(f"{name}: the file has no queries; name a file with at least one row")
    return queries


def unused_fields(queries: Iterable[Query], asked: Collection[str] = ()) -> dict[str, int]:
    """Count the fields that no question uses: for each, the number of queries that have a value in it.

    Args:
        queries: from `read_queries`.
        asked: fields declared as metadata, which are not counted.
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
        raise BadRowError(f"the field {name!r} is {kind(value)}, not text or a whole number")
    check_surrogates("the id", str(value))
    return value
