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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from ragalign.questions.conversations import is_conversation, read_conversation
from ragalign.questions.rows import BadRowError, field_names, is_empty, is_filled, kind, missing, text_of
from ragalign.types import Role, Turn

QUESTION_FIELDS = ("instruction", "question", "query", "prompt", "input")
PASSAGE_FIELDS = ("input", "context", "passage")
ANSWER_FIELDS = ("output", "response", "completion", "answer")
SYSTEM_FIELDS = ("system", "system_prompt")
HISTORY_FIELD = "history"
CONVERSATION_FIELDS = ("messages", "conversation", "conversations")
USER_TURNS_FIELD = "turns"


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
    if field in CONVERSATION_FIELDS or "conversations" in named or is_conversation(value):
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


def system_field(
    row: Mapping[str, Any], *, names: Mapping[str, str] | None = None, metadata: Collection[str] = ()
) -> str | None:
    """The name of the field with the system prompt, or None."""
    usual = (names["system"],) if names and "system" in names else SYSTEM_FIELDS
    return next((name for name in usual if isinstance(row.get(name), str) and is_filled(row, name, metadata)), None)


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


def _user_turn(name: str, number: int, turn: object) -> str:
    while isinstance(turn, Mapping):  # Arena-Hard wraps a text once or twice
        turn = turn.get("content")
    if not isinstance(turn, str):
        raise BadRowError(f"turn {number} of {name!r} is {kind(turn)}, not text")
    return turn


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
    if is_conversation(list(value)) or all(isinstance(each, str) for each in value):
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
