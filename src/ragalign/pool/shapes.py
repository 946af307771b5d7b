r"""Recognising the shape of a row and reading its demonstration.

    shape      fields                                               instruction, response
    alpaca     instruction [input] output                           instruction + "\n" + input, output
    dolly      instruction context response                         instruction + "\n" + context, response
    plain      any other pair of a question (instruction, question, query, prompt, or input by itself) and an answer
               (output, response, completion, answer)               question + "\n" + passages, answer
    sharegpt   conversations: [{from, value}, ...]                  first human turn, first gpt turn
    messages   messages: [{role, content}, ...]                     first user turn, first assistant turn
    lima       conversations: [question, answer, ...]               first and second text
    ragalign   what `Pool.save` writes                              as written

`ragalign.questions` reads the question of a flat row: with all its passages (input, context, passage), and after its
`history` of earlier pairs. A system prompt goes into the metadata as ``system_turn``, and the turns after a
conversation's first pair as ``further_turns`` (a list of ``{"role", "content"}``). The row's ``id`` becomes
`source_id`. All other fields go into the metadata under their own names, including ``source``: a demonstration's
`source` is its file or dataset.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, cast, get_args

from ragalign._parsing import parse_json
from ragalign.errors import ConfigError
from ragalign.questions import (
    ANSWER_FIELDS,
    CONVERSATION_FIELDS,
    QUESTION_FIELDS,
    BadRowError,
    field_names,
    flat_question,
    is_filled,
    kind,
    missing,
    read_conversation,
    system_field,
    text_of,
)

Shape = Literal["alpaca", "dolly", "plain", "sharegpt", "messages", "lima", "ragalign"]
SHAPES: tuple[str, ...] = get_args(Shape)
FIELDS = ("instruction", "input", "response", "id", "conversations", "system", "history")
SYSTEM_TURN = "system_turn"
FURTHER_TURNS = "further_turns"

_FLAT_FIELDS = ("instruction", "input", "response", "system", "history")
# The most common pairs of question and answer first, then all others.
_PAIRS = tuple(
    dict.fromkeys(
        (
            ("instruction", "output"),
            ("instruction", "response"),
            ("prompt", "completion"),
            ("question", "answer"),
            *product(QUESTION_FIELDS, ANSWER_FIELDS),
        )
    )
)
_PAIRS_OF = {"alpaca": _PAIRS[:1], "dolly": _PAIRS[1:2], "plain": _PAIRS[1:]}


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """The content of a row.

    Attributes:
        metadata: the fields that are not part of the demonstration.
        source: the source in rows that a pool saved, else None.
        n_turns: turns of the row, without the system's.
    """

    shape: Shape
    instruction: str
    response: str
    source_id: str | None
    metadata: dict[str, Any]
    source: str | None = None
    n_turns: int = 2


class RowParser:
    """Reads rows in one shape, or recognises the shape of each row."""

    def __init__(
        self, shape: str = "auto", fields: Mapping[str, str] | None = None, metadata: Collection[str] = ()
    ) -> None:
        """Check the options.

        Args:
            shape: one of `SHAPES`, or ``auto``.
            fields: field names that replace the usual ones; keys from `FIELDS`.
            metadata: fields that are never part of a demonstration.

        Raises:
            ConfigError: an unknown shape or key, or fields that do not belong to the shape or are also metadata.
        """
        self._fields = dict(fields or {})
        self._metadata = frozenset(metadata)
        if isinstance(metadata, str):
            raise ConfigError(f"metadata must be a list of field names, not the single text {metadata!r}")
        both = next((own for own in self._fields.values() if own in self._metadata), None)
        if both is not None:
            raise ConfigError(f"the field {both!r} cannot be both part of a demonstration and metadata; choose one")
        unknown = [name for name in self._fields if name not in FIELDS]
        if unknown:
            raise ConfigError(f"unknown field {unknown[0]!r}: use one of {', '.join(FIELDS)}")
        if shape not in ("auto", *SHAPES):
            raise ConfigError(f"unknown shape {shape!r}: use auto, {', '.join(SHAPES)}")
        flat = [name for name in _FLAT_FIELDS if name in self._fields]
        if flat and ("conversations" in self._fields or shape in ("sharegpt", "messages", "lima", "ragalign")):
            raise ConfigError(
                f"the field {flat[0]!r} does not belong to conversations: name either text fields or conversations"
            )
        if "conversations" in self._fields and shape in ("alpaca", "dolly", "plain", "ragalign"):
            raise ConfigError(f"the shape {shape!r} has no conversations: remove the shape or the field")
        self._shape = shape
        self._is_flat = bool(flat)

    def parse(self, row: Mapping[str, Any]) -> ParsedRow:
        """Read one row.

        Raises:
            BadRowError: no shape fits, or a field is missing or has the wrong type. Empty texts are accepted.
        """
        if self._shape == "ragalign" or (self._shape == "auto" and not self._fields and _is_saved(row)):
            return _parse_saved(row)
        if self._shape in ("sharegpt", "messages", "lima"):
            return self._parse_conversation(row, self._conversation_field(row))
        if self._shape == "auto" and not self._is_flat:
            name = self._find_conversation(row)
            if name is not None:
                return self._parse_conversation(row, name)
        return self._parse_flat(row)

    def _find_conversation(self, row: Mapping[str, Any]) -> str | None:
        if "conversations" in self._fields:
            return self._conversation_field(row)
        lists = [name for name in CONVERSATION_FIELDS if self._is_list(row, name)]
        filled = next((name for name in lists if row[name]), None)
        # In a table with mixed rows, an empty list counts as null.
        return filled or (None if any(name in row for name in QUESTION_FIELDS) else next(iter(lists), None))

    def _is_list(self, row: Mapping[str, Any], name: str) -> bool:
        return isinstance(row.get(name), list) and name not in self._metadata

    def _conversation_field(self, row: Mapping[str, Any]) -> str:
        if "conversations" in self._fields:
            name = self._fields["conversations"]
        else:
            usual = CONVERSATION_FIELDS if self._shape == "messages" else CONVERSATION_FIELDS[::-1]
            name = next((name for name in usual if self._is_list(row, name)), usual[0])
        if name not in row:
            raise missing(name, row)
        return name

    def _parse_conversation(self, row: Mapping[str, Any], name: str) -> ParsedRow:
        shape, turns = read_conversation(name, row[name])
        if self._shape not in ("auto", shape):
            raise BadRowError(f"the field {name!r} is in the shape {shape}, not {self._shape}")
        system = None if turns and turns[0][0] == "system" else system_field(row, metadata=self._metadata)
        source_id, metadata = self._rest(row, {name, system})
        if system is not None:
            _put(metadata, SYSTEM_TURN, row[system])
        elif turns and turns[0][0] == "system":
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
        return ParsedRow(shape, turns[0][1], turns[1][1], source_id, metadata, n_turns=len(turns))

    def _parse_flat(self, row: Mapping[str, Any]) -> ParsedRow:
        instruction, response = self._ends(row)
        question = flat_question(row, instruction, answer=response, names=self._fields, metadata=self._metadata)
        source_id, metadata = self._rest(row, {*question.used, response})
        if question.system is not None:
            _put(metadata, SYSTEM_TURN, question.system)
        shape = self._shape
        if shape == "auto":
            shape = "plain" if self._is_flat else _name_of(row, instruction, response)
        n_turns = sum(turn.role != "system" for turn in question.turns) + 1
        answer = text_of(row, response)
        return ParsedRow(cast("Shape", shape), question.as_one_text, answer, source_id, metadata, n_turns=n_turns)

    def _ends(self, row: Mapping[str, Any]) -> tuple[str, str]:
        """The field names of the question and the answer: the first usual pair with values in the row."""
        named = self._fields
        pairs = [
            (named.get("instruction", question), named.get("response", answer))
            for question, answer in _PAIRS_OF.get(self._shape, _PAIRS)
        ]
        pairs = [pair for pair in dict.fromkeys(pairs) if self._metadata.isdisjoint(pair)]
        there = [pair for pair in pairs if pair[0] in row and pair[1] in row and pair[0] != pair[1]]
        filled = [pair for pair in there if is_filled(row, pair[0]) and is_filled(row, pair[1])]
        if there:
            return (filled or there)[0]
        if len(pairs) == 1:
            raise missing(next(name for name in pairs[0] if name not in row), row)
        raise BadRowError(
            f"no known shape fits the fields of the row ({field_names(row)})",
            'name them: fields={"instruction": ..., "response": ...}, --field instruction=NAME --field response=NAME',
        )

    def _rest(self, row: Mapping[str, Any], used: Collection[str | None]) -> tuple[str | None, dict[str, Any]]:
        id_field = self._fields.get("id", "id")
        source_id = _source_id(id_field, row.get(id_field))
        return source_id, {name: value for name, value in row.items() if name not in used and name != id_field}


def _name_of(row: Mapping[str, Any], instruction: str, response: str) -> Shape:
    if (instruction, response) == _PAIRS[0]:
        return "alpaca"
    return "dolly" if (instruction, response) == _PAIRS[1] and "context" in row else "plain"


def _is_saved(row: Mapping[str, Any]) -> bool:
    return row.keys() == {"id", "instruction", "response", "source", "source_id", "metadata"}


def _parse_saved(row: Mapping[str, Any]) -> ParsedRow:
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = parse_json(metadata)
        except ValueError:
            raise BadRowError("the field 'metadata' is not valid JSON") from None
    if not isinstance(metadata, dict):
        raise BadRowError(f"the field 'metadata' is {kind(metadata)}, not an object")
    source_id = _source_id("source_id", row.get("source_id"), empty_is_none=False)
    return ParsedRow(
        "ragalign",
        text_of(row, "instruction"),
        text_of(row, "response"),
        source_id,
        metadata,
        source=text_of(row, "source"),
    )


def _source_id(name: str, value: object, *, empty_is_none: bool = True) -> str | None:
    if value is None or (value == "" and empty_is_none):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():  # pandas turns whole numbers with gaps into floats
        return str(int(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRowError(f"the field {name!r} is {kind(value)}, not text or a number")


def _put(metadata: dict[str, Any], name: str, value: object) -> None:
    if name in metadata:
        raise BadRowError(f"the row has a field {name!r}, a name reserved for the turns of a conversation")
    metadata[name] = value
