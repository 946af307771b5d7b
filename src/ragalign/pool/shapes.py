r"""Recognises the shape of a row and reads its demonstration.

    shape      fields                                               instruction, response
    alpaca     instruction [input] output                           instruction + "\n" + input, output
    dolly      instruction context response                         instruction + "\n" + context, response
    plain      instruction [input] response, prompt completion,     as named
               question answer
    sharegpt   conversations: [{from, value}, ...]                  first human turn, first gpt turn
    messages   messages: [{role, content}, ...]                     first user turn, first assistant turn
    lima       conversations: [question, answer, ...]               first and second text
    ragalign   what `Pool.save` writes                              as written

A conversation's system turn is kept in the metadata as ``system_turn``, the turns after the first pair as
``further_turns`` (a list of ``{"role", "content"}``). The row's own ``id`` becomes `source_id`; every other field
goes into the metadata under its own name, ``source`` included: a demonstration's `source` is its file or dataset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from ragalign.errors import ConfigError
from ragalign.pool.table import BadRowError

Shape = Literal["alpaca", "dolly", "plain", "sharegpt", "messages", "lima", "ragalign"]
SHAPES: tuple[str, ...] = get_args(Shape)
FIELDS = ("instruction", "input", "response", "id", "conversations")
SYSTEM_TURN = "system_turn"
FURTHER_TURNS = "further_turns"

# shape, instruction, input (joined when there is one), response; the first whose two ends are in the row.
_FLAT: tuple[tuple[Shape, str, str | None, str], ...] = (
    ("alpaca", "instruction", "input", "output"),
    ("plain", "instruction", "input", "response"),
    ("plain", "prompt", None, "completion"),
    ("plain", "question", None, "answer"),
)
_CONVERSATION_FIELDS = ("messages", "conversation", "conversations")
# In lower case: some exports write "User" and "Assistant".
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
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number"}


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """What a row says. `source` is None unless the row is one that a pool saved."""

    shape: Shape
    instruction: str
    response: str
    source_id: str | None
    metadata: dict[str, Any]
    source: str | None = None


class RowParser:
    """Reads rows in one shape, or in whichever each row has."""

    def __init__(self, shape: str = "auto", fields: Mapping[str, str] | None = None) -> None:
        """Check the options.

        Args:
            shape: one of `SHAPES`, or ``auto``.
            fields: names that the rows use instead of the usual ones; keys from `FIELDS`.

        Raises:
            ConfigError: an unknown shape or key, or fields that do not belong to the shape.
        """
        self._fields = dict(fields or {})
        unknown = [name for name in self._fields if name not in FIELDS]
        if unknown:
            raise ConfigError(f"unknown field {unknown[0]!r}: name one of {', '.join(FIELDS)}")
        if shape not in ("auto", *SHAPES):
            raise ConfigError(f"unknown shape {shape!r}: use auto, {', '.join(SHAPES)}")
        flat = [name for name in ("instruction", "input", "response") if name in self._fields]
        if flat and ("conversations" in self._fields or shape in ("sharegpt", "messages", "lima", "ragalign")):
            raise ConfigError(
                f"the field {flat[0]!r} has no place in a conversation: name either texts or conversations"
            )
        if "conversations" in self._fields and shape in ("alpaca", "dolly", "plain", "ragalign"):
            raise ConfigError(f"the shape {shape!r} has no conversations: leave out the shape or the field")
        self._shape = shape
        self._named_flat = bool(flat)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        """Read one row.

        Raises:
            BadRowError: no shape fits, or a field is missing or of the wrong type. Empty texts pass.
        """
        if self._shape == "ragalign" or (self._shape == "auto" and not self._fields and _is_saved(row)):
            return _parse_saved(row)
        if self._shape in ("sharegpt", "messages", "lima"):
            return self._parse_conversation(row, self._conversation_field(row))
        if self._shape == "auto" and not self._named_flat:
            name = self._find_conversation(row)
            if name is not None:
                return self._parse_conversation(row, name)
        return self._parse_flat(row)

    def _find_conversation(self, row: Mapping[str, Any]) -> str | None:
        if "conversations" in self._fields:
            return self._conversation_field(row)
        return next((name for name in _CONVERSATION_FIELDS if isinstance(row.get(name), list)), None)

    def _conversation_field(self, row: Mapping[str, Any]) -> str:
        if "conversations" in self._fields:
            name = self._fields["conversations"]
        else:
            usual = _CONVERSATION_FIELDS if self._shape == "messages" else _CONVERSATION_FIELDS[::-1]
            name = next((name for name in usual if isinstance(row.get(name), list)), usual[0])
        if name not in row:
            raise _missing(name, row)
        if not isinstance(row[name], list):
            raise BadRowError(f"the field {name!r} is {_kind(row[name])}, not a list of turns")
        return name

    def _parse_conversation(self, row: Mapping[str, Any], name: str) -> ParsedRow:
        shape, turns = _read_turns(name, row[name])
        if self._shape not in ("auto", shape):
            raise BadRowError(f"the field {name!r} is in the shape {shape}, not {self._shape}")
        source_id, metadata = self._rest(row, {name})
        if turns and turns[0][0] == "system":
            _put(metadata, SYSTEM_TURN, turns[0][1])
            turns = turns[1:]
        if not turns:
            raise BadRowError("the conversation is empty")
        if turns[0][0] != "user":
            raise BadRowError(f"the conversation does not begin with a user's turn (its role is {turns[0][0]!r})")
        if len(turns) == 1:
            raise BadRowError("the conversation's first user turn is not followed by an answer")
        if turns[1][0] != "assistant":
            raise BadRowError(
                "the conversation's first user turn is not followed by an answer "
                f"(the next turn's role is {turns[1][0]!r})"
            )
        if len(turns) > 2:
            _put(metadata, FURTHER_TURNS, [{"role": role, "content": text} for role, text in turns[2:]])
        return ParsedRow(shape, turns[0][1], turns[1][1], source_id, metadata)

    def _parse_flat(self, row: Mapping[str, Any]) -> ParsedRow:
        shape, instruction_field, input_field, response_field = self._flat_fields(row)
        instruction = _text(row, instruction_field)
        used = {instruction_field, response_field}
        if input_field is not None and input_field in row:
            used.add(input_field)
            given = row[input_field]
            if given is not None:
                text = _text(row, input_field)
                if text.strip():
                    instruction = f"{instruction}\n{text}"
        source_id, metadata = self._rest(row, used)
        return ParsedRow(shape, instruction, _text(row, response_field), source_id, metadata)

    def _flat_fields(self, row: Mapping[str, Any]) -> tuple[Shape, str, str | None, str]:
        named = self._fields
        if self._shape == "dolly":
            known: tuple[Shape, str, str | None, str] = ("dolly", "instruction", "context", "response")
        elif self._shape == "alpaca":
            known = _FLAT[0]
        else:
            candidates = _FLAT if self._shape == "auto" else _FLAT[1:]
            found = next(
                (
                    flat
                    for flat in candidates
                    if named.get("instruction", flat[1]) in row and named.get("response", flat[3]) in row
                ),
                None,
            )
            if found is None and "instruction" in named and "response" in named:
                raise _missing(next(name for name in (named["instruction"], named["response"]) if name not in row), row)
            if found is None:
                raise BadRowError(
                    f"no known shape has its fields ({_names(row)})",
                    'name them: fields={"instruction": ..., "response": ...}, '
                    "--field instruction=NAME --field response=NAME",
                )
            known = found
            if self._shape == "auto" and not named and known[3] == "response" and "context" in row:
                known = ("dolly", "instruction", "context", "response")
        shape, instruction, given, response = known
        if self._named_flat:
            shape = cast("Shape", "plain" if self._shape == "auto" else self._shape)
        return shape, named.get("instruction", instruction), named.get("input", given), named.get("response", response)

    def _rest(self, row: Mapping[str, Any], used: set[str]) -> tuple[str | None, dict[str, Any]]:
        id_field = self._fields.get("id", "id")
        source_id = _source_id(id_field, row.get(id_field))
        return source_id, {name: value for name, value in row.items() if name not in used and name != id_field}


def _is_saved(row: Mapping[str, Any]) -> bool:
    return row.keys() == {"id", "instruction", "response", "source", "source_id", "metadata"}


def _parse_saved(row: Mapping[str, Any]) -> ParsedRow:
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            raise BadRowError("the field 'metadata' is not valid JSON") from None
    if not isinstance(metadata, dict):
        raise BadRowError(f"the field 'metadata' is {_kind(metadata)}, not an object")
    source_id = _source_id("source_id", row.get("source_id"), empty_is_none=False)
    return ParsedRow(
        "ragalign", _text(row, "instruction"), _text(row, "response"), source_id, metadata, source=_text(row, "source")
    )


def _read_turns(name: str, turns: list[Any]) -> tuple[Shape, list[tuple[str, str]]]:
    """The shape of a list of turns, and its (role, text) pairs."""
    shape: Shape
    if all(isinstance(turn, str) for turn in turns):
        return "lima", [("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns)]
    if not all(isinstance(turn, dict) for turn in turns):
        raise BadRowError(f"the field {name!r} mixes turns of different types")
    if all("from" in turn for turn in turns):
        shape, role_key, text_key = "sharegpt", "from", "value"
    elif all("role" in turn for turn in turns):
        shape, role_key, text_key = "messages", "role", "content"
    else:
        raise BadRowError(f"the turns in {name!r} have neither 'from' and 'value' nor 'role' and 'content'")
    pairs = []
    for number, turn in enumerate(turns, 1):
        role, text = turn[role_key], turn.get(text_key)
        if isinstance(text, list):
            text = _join_parts(number, text)
        if not isinstance(role, str) or not isinstance(text, str):
            wrong, value = (role_key, role) if not isinstance(role, str) else (text_key, text)
            raise BadRowError(f"turn {number}: {wrong!r} is {_kind(value)}, not text")
        # Roles such as "tool" can only stand after the first pair; there they keep their name.
        pairs.append((_ROLES.get(role.lower(), role), text))
    return shape, pairs


def _join_parts(number: int, parts: list[Any]) -> str:
    """The text of an OpenAI message whose content is a list of parts."""
    texts = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRowError(f"turn {number}: its content has a part that is not text")
        texts.append(part["text"])
    return "".join(texts)


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return value
    if name not in row:
        raise _missing(name, row)
    raise BadRowError(f"the field {name!r} is {_kind(value)}, not text")


def _source_id(name: str, value: object, *, empty_is_none: bool = True) -> str | None:
    if value is None or (value == "" and empty_is_none):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():  # pandas turns whole numbers with gaps into floats
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRowError(f"the field {name!r} is {_kind(value)}, not text or a number")


def _put(metadata: dict[str, Any], name: str, value: object) -> None:
    if name in metadata:
        raise BadRowError(f"the row has a field {name!r}, a name that is kept for the conversation's own turns")
    metadata[name] = value


def _missing(name: str, row: Mapping[str, Any]) -> BadRowError:
    return BadRowError(f"there is no field {name!r} among its fields ({_names(row)})")


def _names(row: Mapping[str, Any]) -> str:
    names = [str(name) for name in row]
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") if names else "none"


def _kind(value: object) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)
