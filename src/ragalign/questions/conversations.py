"""Reading conversations: lists of turns in the forms that datasets use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ragalign.questions.rows import BadRowError, field_names, is_empty, kind

ConversationShape = Literal["sharegpt", "messages", "lima"]


# Compared in lower case: some exports write "User" and "Assistant".
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}


def read_conversation(name: str, value: object) -> tuple[ConversationShape, list[tuple[str, str]]]:
    """Read a list of turns: its shape, and its (role, text) pairs. Unknown roles keep their names.

    Raises:
        BadRowError: the value is not a list of turns.
    """
    if not isinstance(value, list):
        raise BadRowError(f"the field {name!r} is {kind(value)}, not a list of turns")
    if all(isinstance(turn, str) for turn in value):
        return "lima", [("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(value)]
    if not all(isinstance(turn, dict) for turn in value):
        raise BadRowError(f"the field {name!r} mixes turns of different types")
    if not all("from" in turn or "role" in turn for turn in value):
        raise BadRowError(f"the turns in {name!r} have neither 'from' and 'value' nor 'role' and 'content'")
    pairs = [_turn(number, turn) for number, turn in enumerate(value, 1)]
    return "sharegpt" if _key(value[0], "from", "role") == "from" else "messages", pairs


def is_conversation(value: object) -> bool:
    """Whether a value is a list of turns with roles."""
    return isinstance(value, list) and any(
        isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value
    )


def _turn(number: int, turn: Mapping[str, Any]) -> tuple[str, str]:
    """The role and text of a turn. In tables with mixed rows, the keys of the other form exist with null values."""
    role_key = _key(turn, "from", "role")
    text_key = _key(turn, "value", "content") if role_key == "from" else _key(turn, "content", "value")
    role, text = turn.get(role_key), turn.get(text_key)
    if isinstance(text, list):
        text = _join_parts(number, text)
    if not isinstance(role, str) or not isinstance(text, str):
        wrong, value = (role_key, role) if not isinstance(role, str) else (text_key, text)
        if wrong not in turn:
            raise BadRowError(f"turn {number} has no {wrong!r} ({field_names(turn)})")
        raise BadRowError(f"turn {number}: {wrong!r} is {kind(value)}, not text")
    # Other roles, such as "tool", are allowed after the first pair of a demonstration.
    return _ROLES.get(role.lower(), role), text


def _key(turn: Mapping[str, Any], first: str, second: str) -> str:
    """Which of two keys a turn uses: the first with a value, or else the first that exists."""
    there = [key for key in (first, second) if key in turn]
    filled = [key for key in there if not is_empty(turn[key])]
    typed = [key for key in there if isinstance(turn[key], str | list)]  # empty, but of the right type
    return next(iter([*filled, *typed, *there]), first)


def _join_parts(number: int, parts: Sequence[Any]) -> str:
    """The text of an OpenAI message whose content is a list of parts."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRowError(f"turn {number}: its content has a part that is not of type text")
        texts.append(part["text"])
    return "".join(texts)
