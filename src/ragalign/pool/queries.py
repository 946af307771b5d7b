"""Reads queries: the conversations that are to be answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast, get_args

from ragalign.errors import DataError
from ragalign.pool.readers import read_file
from ragalign.pool.report import Unit, location
from ragalign.pool.rows import Problem, Rows
from ragalign.pool.table import BadRowError, check_surrogates, check_text
from ragalign.types import Query, Role, Turn


def read_queries(path: str | Path) -> list[Query]:
    """Read JSON Lines (or any other file that a pool can be read from) with one query per row.

    A row has `instruction` (with an optional `input`, joined by a line break as in pools) or `messages`
    (``{"role", "content"}``, the last of them the user's), and an `id`; without one, its line number is its id.
    All other fields become the query's metadata.

    Raises:
        DataError: the file cannot be read, a row is no query, or an id comes twice.
    """
    unit, rows = read_file(Path(path))
    return as_queries(rows, str(path), unit)


def as_queries(rows: Rows, name: str, unit: Unit) -> list[Query]:
    """The queries in rows of any origin, as `read_queries`; `name` and `unit` are for messages.

    Raises:
        DataError: a row is no query, an id comes twice, or there is none.
    """
    queries: list[Query] = []
    lines: dict[str, int] = {}
    for number, row in rows:
        where = location(name, number, unit)
        try:
            query = _query(row, number)
        except BadRowError as error:
            raise DataError(f"{where}: {error.reason}; {error.advice or 'correct the row'}") from None
        first = lines.setdefault(query.id, number)
        if first != number:
            raise DataError(f"{where}: the id {query.id!r} was used before, in {unit} {first}; give each query its own")
        queries.append(query)
    if not queries:
        raise DataError(f"{name}: there are no queries in it; give a file with at least one row")
    return queries


def _query(row: dict[str, Any] | Problem, number: int) -> Query:
    if isinstance(row, Problem):
        raise BadRowError(row.reason)
    metadata = dict(row)
    id_value = metadata.pop("id", None)
    if id_value is None:
        id_value = number
    if isinstance(id_value, bool) or not isinstance(id_value, str | int):
        raise BadRowError("the field 'id' is neither text nor a whole number")
    check_surrogates("the id", str(id_value))
    if "messages" in metadata:
        turns = _turns(metadata.pop("messages"))
    elif "instruction" in metadata:
        turns = (Turn("user", _instruction(metadata.pop("instruction"), metadata.pop("input", None))),)
    else:
        names = ", ".join(map(str, row)) or "none"
        raise BadRowError(f"there is neither 'instruction' nor 'messages' among its fields ({names})", "name it so")
    return Query(str(id_value), turns, metadata)


def _instruction(instruction: object, given: object) -> str:
    if not isinstance(instruction, str):
        raise BadRowError("the field 'instruction' is not text")
    if given is not None and not isinstance(given, str):
        raise BadRowError("the field 'input' is not text")
    text = f"{instruction}\n{given}" if given and given.strip() else instruction
    check_text("instruction", text)
    return text


def _turns(messages: object) -> tuple[Turn, ...]:
    if not isinstance(messages, list) or not messages:
        raise BadRowError("the field 'messages' is not a list with at least one message")
    turns = []
    for i, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise BadRowError(f"message {i} is not an object with 'role' and 'content'")
        role, content = message.get("role"), message.get("content")
        if role not in get_args(Role):
            raise BadRowError(f"message {i} has the role {role!r}", "use system, user or assistant")
        if not isinstance(content, str):
            raise BadRowError(f"message {i} has no text as its 'content'")
        check_text(f"content of message {i}", content)
        turns.append(Turn(cast("Role", role), content))
    if turns[-1].role != "user":
        raise BadRowError(f"the last message is the {turns[-1].role}'s, not the user's")
    return tuple(turns)
