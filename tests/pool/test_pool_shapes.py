from __future__ import annotations

import math
from typing import Any

import pytest

from ragalign.errors import ConfigError
from ragalign.pool.shapes import SHAPES, ParsedRow, RowParser
from ragalign.questions import BadRowError


def parse(row: dict[str, Any], shape: str = "auto", **fields: str) -> ParsedRow:
    return RowParser(shape, fields).parse(row)


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


def messages(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in pairs]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, ("alpaca", "q", "a")),
        ({"instruction": "q", "input": "  \n", "output": "a"}, ("alpaca", "q", "a")),
        ({"instruction": "q", "input": None, "output": "a"}, ("alpaca", "q", "a")),
        ({"instruction": "q", "output": "a"}, ("alpaca", "q", "a")),
        ({"instruction": "q", "input": "x", "output": "a"}, ("alpaca", "q\nx", "a")),
        ({"instruction": "q", "context": "x", "response": "a"}, ("dolly", "q\nx", "a")),
        ({"instruction": "q", "context": "", "response": "a"}, ("dolly", "q", "a")),
        ({"instruction": "q", "response": "a"}, ("plain", "q", "a")),
        ({"instruction": "q", "input": "x", "response": "a"}, ("plain", "q\nx", "a")),
        ({"prompt": "q", "completion": "a"}, ("plain", "q", "a")),
        ({"question": "q", "answer": "a"}, ("plain", "q", "a")),
        ({"conversations": turns(("human", "q"), ("gpt", "a"))}, ("sharegpt", "q", "a")),
        ({"conversations": turns(("user", "q"), ("assistant", "a"))}, ("sharegpt", "q", "a")),
        ({"conversation": turns(("human", "q"), ("gpt", "a"))}, ("sharegpt", "q", "a")),
        ({"messages": messages(("user", "q"), ("assistant", "a"))}, ("messages", "q", "a")),
        ({"conversations": messages(("user", "q"), ("assistant", "a"))}, ("messages", "q", "a")),
        ({"conversations": ["q", "a"], "source": "stackexchange"}, ("lima", "q", "a")),
    ],
)
def test_shapes_are_recognised(row: dict[str, Any], expected: tuple[str, str, str]) -> None:
    parsed = parse(row)
    assert (parsed.shape, parsed.instruction, parsed.response) == expected
    assert parse(row, shape=expected[0]) == parsed


@pytest.mark.parametrize("question", ["instruction", "question", "query", "prompt"])
@pytest.mark.parametrize("passage", ["input", "context", "passage"])
@pytest.mark.parametrize("answer", ["output", "response", "completion", "answer"])
@pytest.mark.parametrize("filling", [None, "", " ", float("nan"), []])
def test_any_question_passage_and_answer(question: str, passage: str, answer: str, filling: object) -> None:
    others = (
        "instruction",
        "query",
        "input",
        "context",
        "passage",
        "output",
        "answer",
        "messages",
        "history",
        "system",
    )
    row = dict.fromkeys(others, filling) | {question: "q", passage: "c", answer: "a", "topic": "t"}
    parsed = parse(row)
    assert (parsed.instruction, parsed.response) == ("q\nc", "a")
    assert parsed.metadata["topic"] == "t"
    assert not {question, passage, answer} & parsed.metadata.keys()


def test_history_and_system_are_kept() -> None:
    row = {"instruction": "And in Spain?", "input": "in 1900", "output": "Madrid", "system": "s"}
    row |= {"history": [["What is the capital of France?", "Paris."]]}
    parsed = parse(row)
    assert parsed.instruction == "What is the capital of France?\nParis.\nAnd in Spain?\nin 1900"
    assert (parsed.response, parsed.metadata, parsed.n_turns) == ("Madrid", {"system_turn": "s"}, 4)
    assert parse({"conversations": ["q", "a"], "system": "s"}).metadata == {"system_turn": "s"}


def test_fields_set_apart_are_no_part_of_the_question() -> None:
    row = {"question": "q", "context": {"title": "t"}, "answer": "a", "history": "of Rome"}
    assert RowParser(metadata=["context"]).parse(row).metadata == {"context": {"title": "t"}, "history": "of Rome"}
    with pytest.raises(BadRowError) as caught:
        parse(row)
    assert str(caught.value) == "the field 'context' is an object, not text"
    assert "--metadata context" in caught.value.advice
    with pytest.raises(ConfigError, match="'q' cannot be both part of a demonstration and metadata"):
        RowParser("auto", {"instruction": "q"}, ["q"])


@pytest.mark.parametrize(
    "turns",
    [
        [{"from": None, "value": None, "role": "user", "content": "q"}, {"from": "gpt", "value": "a", "role": None}],
        [{"from": "human", "value": "q", "role": None, "content": None}, {"role": "assistant", "content": "a"}],
        [{"from": "", "value": "", "role": "user", "content": "q"}, {"from": math.nan, "role": "gpt", "content": "a"}],
        [{"role": "user", "content": "q", "value": ""}, {"from": "gpt", "value": "a", "role": math.nan, "content": ""}],
        [{"role": None, "content": None, "from": "human", "value": "q"}, {"role": "model", "from": None, "value": "a"}],
    ],
)
def test_turns_of_mixed_tables(turns: list[dict[str, Any]]) -> None:
    parsed = parse({"conversations": turns})
    assert (parsed.instruction, parsed.response) == ("q", "a")


def test_texts_are_taken_as_they_are() -> None:
    parsed = parse({"instruction": " q \n", "input": " x ", "output": "\ta\n"})
    assert (parsed.instruction, parsed.response) == (" q \n\n x ", "\ta\n")


def test_own_id_and_other_fields() -> None:
    parsed = parse({"id": "r7", "instruction": "q", "output": "a", "source": "web", "score": 0.5, "tags": ["x"]})
    assert parsed.source_id == "r7"
    assert parsed.metadata == {"source": "web", "score": 0.5, "tags": ["x"]}
    assert parsed.source is None


@pytest.mark.parametrize(
    ("value", "expected"), [(7, "7"), (7.0, "7"), (0.5, "0.5"), ("", None), (None, None), (0, "0")]
)
def test_ids_become_text(value: object, expected: str | None) -> None:
    assert parse({"id": value, "instruction": "q", "output": "a"}).source_id == expected


def test_system_turn_and_further_turns_are_kept() -> None:
    row = {
        "messages": messages(
            ("system", "be kind"),
            ("user", "q"),
            ("assistant", "a"),
            ("user", "q2"),
            ("tool", "42"),
            ("assistant", "a2"),
        )
    }
    assert parse(row).metadata == {
        "system_turn": "be kind",
        "further_turns": [
            {"role": "user", "content": "q2"},
            {"role": "tool", "content": "42"},
            {"role": "assistant", "content": "a2"},
        ],
    }
    lima = parse({"conversations": ["q", "a", "q2", "a2"]})
    assert lima.metadata["further_turns"] == [{"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"}]


def test_a_message_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    assert parse({"messages": messages(("user", parts), ("assistant", "a"))}).instruction == "What is this?"


def test_named_fields() -> None:
    row = {"q": "q", "ctx": "x", "a": "a", "key": 3, "id": "kept"}
    parsed = parse(row, instruction="q", input="ctx", response="a", id="key")
    assert (parsed.shape, parsed.instruction, parsed.response, parsed.source_id) == ("plain", "q\nx", "a", "3")
    assert parsed.metadata == {"id": "kept"}
    assert parse({"instruction": "q", "best": "a"}, response="best").response == "a"
    assert parse({"instruction": "q", "output": "b", "best": "a"}, shape="alpaca", response="best").response == "a"
    assert parse({"dialog": ["q", "a"]}, conversations="dialog").shape == "lima"
    assert parse({"dialog": ["q", "a"]}, shape="lima", conversations="dialog").shape == "lima"


def test_saved_rows_keep_source_and_metadata() -> None:
    row = {"id": "0" * 16, "instruction": "q", "response": "a", "source": "f", "source_id": None, "metadata": {"id": 1}}
    parsed = parse(row)
    assert (parsed.shape, parsed.source, parsed.source_id, parsed.metadata) == ("ragalign", "f", None, {"id": 1})


@pytest.mark.parametrize(("user", "assistant"), [("User", "Assistant"), ("prompter", "bot"), ("HUMAN", "bing")])
def test_odd_names_of_roles(user: str, assistant: str) -> None:
    parsed = parse({"conversations": turns(("System", "s"), (user, "q"), (assistant, "a"), (user, "more"))})
    assert (parsed.instruction, parsed.response, parsed.metadata["system_turn"]) == ("q", "a", "s")
    assert parsed.metadata["further_turns"] == [{"role": "user", "content": "more"}]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "no known shape fits the fields of the row (none)"),
        ({"text": "q a"}, "no known shape fits the fields of the row (text)"),
        ({"instruction": "q"}, "no known shape fits the fields of the row (instruction)"),
        ({"instruction": 5, "output": "a"}, "the field 'instruction' is a number, not text"),
        ({"instruction": "q", "output": None}, "the field 'output' is null, not text"),
        ({"instruction": "q", "output": ["a"]}, "the field 'output' is a list, not text"),
        ({"instruction": "q", "input": {"x": 1}, "output": "a"}, "the field 'input' is an object, not text"),
        ({"id": ["x"], "instruction": "q", "output": "a"}, "the field 'id' is a list, not text or a number"),
        ({"id": True, "instruction": "q", "output": "a"}, "the field 'id' is a boolean, not text or a number"),
        ({"conversations": []}, "the conversation is empty"),
        ({"conversations": ["q"]}, "the conversation's first user turn is not followed by an answer"),
        ({"conversations": ["q", {"from": "gpt"}]}, "the field 'conversations' mixes turns of different types"),
        ({"conversations": [{"a": "q"}]}, "the turns in 'conversations' have neither 'from' and 'value' nor"),
        ({"conversations": turns(("gpt", "a"), ("human", "q"))}, "begin with a user's turn (its role is 'assistant')"),
        ({"conversations": turns(("human", "q"), ("function_call", "x"))}, "next turn's role is 'function_call'"),
        ({"conversations": turns(("human", "q"), ("human", "q"))}, "first user turn is not followed by an answer"),
        ({"conversations": turns(("system", "s"))}, "the conversation is empty"),
        ({"messages": messages(("user", None))}, "turn 1: 'content' is null, not text"),
        ({"messages": [{"role": "user", "text": "q"}]}, "turn 1 has no 'content' (role, text)"),
        ({"messages": messages((5, "q"))}, "turn 1: 'role' is a number, not text"),
        (
            {"messages": messages(("user", [{"type": "image_url"}]))},
            "turn 1: its content has a part that is not of type text",
        ),
        (
            {"messages": messages(("user", "q"), ("assistant", "a"), ("user", "r")), "further_turns": 2},
            "the row has a field 'further_turns', a name reserved for",
        ),
    ],
)
def test_rows_without_a_demonstration_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        parse(row)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("row", "shape", "fields", "reason"),
    [
        ({"prompt": "q", "completion": "a"}, "alpaca", {}, "the row has no field 'instruction' (its fields: prompt"),
        ({"dialog": ["q", "a"]}, "messages", {}, "the row has no field 'messages' (its fields: dialog)"),
        ({"dialog": ["q", "a"]}, "lima", {}, "the row has no field 'conversations' (its fields: dialog)"),
        ({"conversations": ["q", "a"]}, "sharegpt", {}, "is in the shape lima, not sharegpt"),
        ({"conversations": "q"}, "sharegpt", {}, "the field 'conversations' is text, not a list of turns"),
        ({"x": "q"}, "auto", {"instruction": "q", "response": "a"}, "the row has no field 'q' (its fields: x)"),
        ({"x": "q"}, "auto", {"conversations": "c"}, "the row has no field 'c'"),
        ({"instruction": "q"}, "ragalign", {}, "the field 'metadata' is null, not an object"),
    ],
)
def test_a_shape_or_field_that_a_row_does_not_have(
    row: dict[str, Any], shape: str, fields: dict[str, str], reason: str
) -> None:
    with pytest.raises(BadRowError) as caught:
        parse(row, shape, **fields)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        ("csv", {}, f"unknown shape 'csv': use auto, {', '.join(SHAPES)}"),
        ("auto", {"answer": "a"}, "unknown field 'answer'"),
        ("auto", {"instruction": "q", "conversations": "c"}, "'instruction' does not belong to conversations"),
        ("sharegpt", {"response": "a"}, "'response' does not belong to conversations"),
        ("alpaca", {"conversations": "c"}, "'alpaca' has no conversations"),
    ],
)
def test_options_that_do_not_fit(shape: str, fields: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RowParser(shape, fields)
    assert message in str(caught.value)
