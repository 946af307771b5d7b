"""Checks of conversations, and their system text."""

from __future__ import annotations

from collections.abc import Sequence

from ragalign.errors import DataError
from ragalign.types import Turn


def system_text(turns: Sequence[Turn]) -> str:
    """The joined text of a conversation's system turns."""
    return "\n\n".join(turn.content for turn in turns if turn.role == "system")


def check_text(text: str, what: str) -> None:
    """Reject a text with lone surrogates, which tokenizers cannot encode; `what` names it in the message.

    Raises:
        DataError: the text has a lone surrogate; the message has its position.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"{what} is not valid Unicode: character {error.start + 1} is a lone surrogate (U+{code:04X}); remove it"
        ) from None


def check_turns(turns: Sequence[Turn]) -> None:
    """Reject conversations that a template cannot render.

    Raises:
        DataError: a turn is out of order or not valid Unicode; the message has its number.
    """
    spoken = 0
    for number, turn in enumerate(turns, start=1):
        check_text(turn.content, f"turn {number}")
        if turn.role == "system":
            if spoken:
                raise DataError(f"turn {number}: system turns must come first")
            continue
        expected = "assistant" if spoken % 2 else "user"
        if turn.role != expected:
            raise DataError(f"turn {number}: expected the role {expected!r}, found {turn.role!r}")
        spoken += 1
    if spoken % 2 == 0:
        raise DataError("the conversation must end with a user turn" if spoken else "the conversation is empty")
