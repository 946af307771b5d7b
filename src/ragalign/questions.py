r"""Reading the question from a row: for pools, query files, prompt sets and judged answers alike.

    a conversation     messages, conversation(s): a list of {role, content} or {from, value}, or of alternating texts
    the user's turns   turns: a list of texts (FastChat) or of {content} (Arena-Hard)
    flat               instruction, question, query or prompt; without any of these, input

A flat question is followed by its passages (input, context, passage), each after a line break. `history`, a list of
earlier (question, answer) pairs, and `system` or `system_prompt` are turns before it. Null, NaN, blank text and empty
lists count as missing, so rows of mixed shapes, with each other's fields set to null, are read by the fields they fill.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from ragalign.types import Role, Turn

ConversationShape = Literal["sharegpt", "messages", "lima"]

QUESTION_FIELDS = ("instruction", "question", "query", "prompt", "input")
PASSAGE_FIELDS = ("input", "context", "passage")
ANSWER_FIELDS = ("output", "response", "completion", "answer")
SYSTEM_FIELDS = ("system", "system_prompt")
HISTORY_FIELD = "history"
CONVERSATION_FIELDS = ("messages", "conversation", "conversations")
USER_TURNS_FIELD = "turns"

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
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}


class BadRowError(Exception):
    """A row that cannot be used: the reason, and advice where there is any better than "correct it"."""

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Question:
    """The question in a row.

    Attributes:
        turns: the conversation up to the first user turn that needs an answer.
        further: the user's later turns, as texts.
        bare: the last of `turns` without its passages.
        used: names of the fields that `turns` and `further` were read from.
    """

    turns: tuple[Turn, ...]
    further: tuple[str, ...] = ()
    bare: str = ""
    used: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """The last turn: the question with its passages."""
        return self.turns[-1].content

    @property
    def system(self) -> str | None:
        """The system turn, if there is one."""
        return self.turns[0].content if self.turns[0].role == "system" else None

    @property
    def as_one_text(self) -> str:
        """All turns except the system's as a single text, separated by line breaks."""
        return joined(self.turns)


def joined(turns: Iterable[Turn]) -> str:
    """Join turns with line breaks, leaving out the system's."""
    return "\n".join(turn.content for turn in turns if turn.role != "system")


def read_question(
    row: Mapping[str, Any], *, names: Mapping[str, str] | None = None, metadata: Collection[str] = ()
) -> Question:
    """Read the question of a row.

    Args:
        row: the row.
        names: field names that replace the usual ones, by part: ``instruction`` (a text, a list of the user's turns,
            or a conversation), ``input``, ``system``, ``history`` or ``conversations``.
        metadata: fields that are never part of the question.

    Raises:
        BadRowError: the row has no question, or a part has the wrong type.
    """
    named = names or {}
    if "conversations" in named or "instruction" in named:
        field = named.get("conversations", named.get("instruction", ""))
        if field not in row:
            raise missing(field, row)
    else:
        lists = [name for name in (*CONVERSATION_FIELDS, USER_TURNS_FIELD) if name in row and name not in metadata]
        flat = [name for name in QUESTION_FIELDS if name in row and name not in metadata]
        filled = [name for name in lists if isinstance(row[name], list) and row[name]]
        # If all are empty, the first gives the error message.
        candidates = [*filled, *(name for name in flat if is_filled(row, name)), *flat, *lists]
        if not candidates:
            raise BadRowError(f"no known field holds a question ({field_names(row)})", "name it with --field NAME")
        field = candidates[0]
    value = row[field]
    if field in CONVERSATION_FIELDS or "conversations" in named or _is_conversation(value):
        return _asked_in_conversation(row, field, names=named, metadata=metadata)
    if isinstance(value, list):
        texts = [_user_turn(field, number, turn) for number, turn in enumerate(value, 1)]
        if not texts:
            raise BadRowError(f"the field {field!r} is an empty list")
        return Question((Turn("user", texts[0]),), tuple(texts[1:]), texts[0], frozenset({field}))
    return flat_question(row, field, names=named, metadata=metadata)


def flat_question(
    row: Mapping[str, Any],
    field: str,
    *,
    answer: str | None = None,
    names: Mapping[str, str] | None = None,
    metadata: Collection[str] = (),
) -> Question:
    """Read the question of a row without a conversation.

    Args:
        row: the row.
        field: name of the question's field.
        answer: name of the answer's field, which is not part of the question.
        names: as in `read_question`.
        metadata: as in `read_question`.

    Raises:
        BadRowError: a part has the wrong type.
    """
    named = names or {}
    apart = {field, answer, *metadata}
    bare = text_of(row, field)
    parts, used = [bare], {field}
    for name in (named["input"],) if "input" in named else PASSAGE_FIELDS:
        if name in row and name not in apart:
            used.add(name)
            parts += [text for text in _passages(name, row[name]) if text not in parts[1:]]
    turns: list[Turn] = []
    if (system := system_field(row, names=named, metadata=metadata)) is not None:
        used.add(system)
        turns.append(Turn("system", row[system]))
    past = named.get("history", HISTORY_FIELD)
    if past in row and past not in apart and (earlier := _history(past, row[past])) is not None:
        used.add(past)
        turns += earlier
    turns.append(Turn("user", "\n".join(parts)))
    return Question(tuple(turns), (), bare, frozenset(used))


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


def system_field(
    row: Mapping[str, Any], *, names: Mapping[str, str] | None = None, metadata: Collection[str] = ()
) -> str | None:
    """The name of the field with the system prompt, or None."""
    usual = (names["system"],) if names and "system" in names else SYSTEM_FIELDS
    return next((name for name in usual if isinstance(row.get(name), str) and is_filled(row, name, metadata)), None)


def is_filled(row: Mapping[str, Any], name: str, metadata: Collection[str] = ()) -> bool:
    """Whether a field is not metadata and has a value that is not null, NaN, blank or empty."""
    return name not in metadata and not is_empty(row.get(name))


def is_empty(value: object) -> bool:
    """Whether a value is null, NaN, blank text or an empty container."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, list | tuple | dict) and not value)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """The text in a field.

    Raises:
        BadRowError: the field is missing or not text.
    """
    value = row.get(name)
    if isinstance(value, str):
        return value
    if name not in row:
        raise missing(name, row)
    raise BadRowError(f"the field {name!r} is {kind(value)}, not text")


def missing(name: str, row: Mapping[str, Any]) -> BadRowError:
    """The error for a field that a row lacks."""
    return BadRowError(f"the row has no field {name!r} (its fields: {field_names(row)})")


def field_names(row: Mapping[str, Any]) -> str:
    """A row's field names, for messages."""
    names = [str(name) for name in row]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def kind(value: object) -> str:
    """The type of a JSON value, for messages."""
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def _asked_in_conversation(
    row: Mapping[str, Any], name: str, *, names: Mapping[str, str], metadata: Collection[str]
) -> Question:
    shape, pairs = read_conversation(name, row[name])
    used = {name}
    if pairs and pairs[0][0] != "system" and (system := system_field(row, names=names, metadata=metadata)):
        used.add(system)
        pairs = [("system", row[system]), *pairs]
    turns = []
    for number, (role, text) in enumerate(pairs, 1):
        if role not in get_args(Role):
            raise BadRowError(f"turn {number} has the unknown role {role!r}", "use system, user or assistant")
        turns.append(Turn(cast("Role", role), text))
    if not turns:
        raise BadRowError("the conversation is empty")
    if turns[-1].role == "user" and shape != "lima":
        return Question(tuple(turns), (), turns[-1].content, frozenset(used))
    if shape == "messages":
        raise BadRowError(f"the last message is the {turns[-1].role}'s, not the user's")
    # The conversation includes its answers: ask the first question again, and then the later ones.
    first = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None or any(turn.role == "assistant" for turn in turns[:first]):
        raise BadRowError(f"the conversation does not begin with a user's turn (its role is {turns[0].role!r})")
    further = tuple(turn.content for turn in turns[first + 1 :] if turn.role == "user")
    return Question(tuple(turns[: first + 1]), further, turns[first].content, frozenset(used))


def _is_conversation(value: object) -> bool:
    """Whether a value is a list of turns with roles."""
    return isinstance(value, list) and any(
        isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value
    )


def _user_turn(name: str, number: int, turn: object) -> str:
    while isinstance(turn, Mapping):  # Arena-Hard wraps a text once or twice
        turn = turn.get("content")
    if not isinstance(turn, str):
        raise BadRowError(f"turn {number} of {name!r} is {kind(turn)}, not text")
    return turn


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


def _passages(name: str, value: object) -> list[str]:
    """The texts in a passage field."""
    values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    wrong = next((each for each in values if not isinstance(each, str) and not is_empty(each)), None)
    if wrong is not None:
        advice = f"name the passage's field with --field input=NAME, or make it metadata with --metadata {name}"
        raise BadRowError(f"the field {name!r} is {kind(wrong if wrong is value else value)}, not text", advice)
    return [text for text in values if not is_empty(text)]


def _history(name: str, value: object) -> list[Turn] | None:
    """The turns before the question; None if the field is not a history."""
    if isinstance(value, str) and value.strip().startswith("["):  # as CSV holds it
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if is_empty(value):
        return []
    if not isinstance(value, list | tuple):
        return None
    if _is_conversation(list(value)) or all(isinstance(each, str) for each in value):
        pairs = read_conversation(name, list(value))[1]
    else:
        pairs = [
            (role, text)
            for number, entry in enumerate(value, 1)
            for role, text in zip(("user", "assistant"), _pair(name, number, entry), strict=True)
        ]
    if any(role not in ("user", "assistant") for role, _ in pairs):
        raise BadRowError(f"the field {name!r} has turns of roles other than user and assistant")
    return [Turn(cast("Role", role), text) for role, text in pairs]


def _pair(name: str, number: int, entry: object) -> tuple[str, str]:
    if isinstance(entry, Mapping):
        entry = [
            next((entry[key] for key in keys if is_filled(entry, key)), None)
            for keys in ((*QUESTION_FIELDS, "user"), (*ANSWER_FIELDS, "assistant"))
        ]
    if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(isinstance(text, str) for text in entry):
        raise BadRowError(f"entry {number} of {name!r} is not a (question, answer) pair of texts")
    return entry[0], entry[1]
