from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.pool.wrappers import unwrap

ALONE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Response:"
)
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:"
)


def collapse(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("shorten", [lambda t: t, lambda t: t.removesuffix("\n\n### Response:"), lambda t: t + "\n"])
@pytest.mark.parametrize("flatten", [lambda t: t, collapse])
def test_both_forms_unwrap_on_one_line_and_on_many(shorten, flatten) -> None:
    assert unwrap(flatten(shorten(ALONE)).format("Add 2 and 3.")) == "Add 2 and 3."
    assert unwrap(flatten(shorten(PAIRED)).format("Add them.", "2, 3")) == "Add them.\n2, 3"


def test_an_empty_input_leaves_the_instruction() -> None:
    assert unwrap(PAIRED.format("Add them.", "")) == "Add them."


def test_line_breaks_inside_the_instruction_stay() -> None:
    assert unwrap(ALONE.format("One.\n\nTwo:\n  three")) == "One.\n\nTwo:\n  three"


def test_headers_inside_an_instruction_are_text() -> None:
    assert unwrap(ALONE.format("What does ### Input: mean?")) == "What does ### Input: mean?"
    assert unwrap(PAIRED.format("Explain", "a ### Input: b")) == "Explain\na ### Input: b"
    assert unwrap(ALONE.format("Say ### Response: twice")) == "Say ### Response: twice"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Add 2 and 3.",
        "### Instruction:\nAdd 2 and 3.\n\n### Response:",
        "Quote this: " + ALONE.format("Add 2 and 3."),
        "Below is an instruction that describes a task. Please do it.\n\n### Instruction:\nAdd.",
    ],
)
def test_other_texts_are_in_no_template(text: str) -> None:
    assert unwrap(text) is None


@settings(deadline=None)
@given(
    st.text().map(str.strip).filter(lambda t: "###" not in t), st.text().map(str.strip).filter(lambda t: "###" not in t)
)
def test_wrapping_is_undone(instruction: str, given_input: str) -> None:
    assert unwrap(ALONE.format(instruction)) == instruction
    expected = "\n".join(part for part in (instruction, given_input) if part)
    assert unwrap(PAIRED.format(instruction, given_input)) == expected
