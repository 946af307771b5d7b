"""Conversations as users pass them, turned into queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

from ragalign.errors import DataError
from ragalign.templates.turns import check_turns
from ragalign.types import Query, Role, Turn

Message = Turn | Mapping[str, str]


def to_query(messages: str | Sequence[Message], id_: str = "0") -> Query:
    """The query of a single question or of a conversation.

    Raises:
        DataError: a message is malformed, or the roles do not alternate.
    """
    if isinstance(messages, str):
        return Query(id_, (Turn("user", messages),))
    turns = tuple(message if isinstance(message, Turn) else _turn(message, n) for n, message in enumerate(messages, 1))
    check_turns(turns)
    return Query(id_, turns)


def _turn(message: Mapping[str, str], number: int) -> Turn:
    role, content = message.get("role"), message.get("content")
    if role not in get_args(Role) or not isinstance(content, str):
        raise DataError(f"message {number}: expected 'role' (system, user or assistant) and 'content' (text)")
    return Turn(cast("Role", role), content)
