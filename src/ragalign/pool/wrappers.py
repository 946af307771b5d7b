"""Extracting instructions from the prompt templates that some pools were saved in."""

from __future__ import annotations

import re

from ragalign.text import normalise

# Stanford Alpaca's training prompt, with and without an input. In pools saved by training scripts the line breaks can
# be collapsed to spaces, and the closing response header can be missing.
_ALPACA = re.compile(
    r"\s*Below is an instruction that describes a task"
    r"(?P<paired>, paired with an input that provides further context)?\.\s+"
    r"Write a response that appropriately completes the request\.\s+"
    r"### ?Instruction:(?P<body>.*?)"
    r"(?:\s### ?Response:\s*)?",
    re.DOTALL,
)
_ALPACA_INPUT = re.compile(r"\s### ?Input:")


def unwrap(text: str) -> str | None:
    """Extract the instruction from a known prompt template; None if ``text`` is not in one.

    An input is joined to its instruction with a line break, as for rows in the Alpaca shape. Whitespace around both
    belongs to the template and is removed.
    """
    match = _ALPACA.fullmatch(text)
    if match is None:
        return None
    body: str = match["body"]
    parts = _ALPACA_INPUT.split(body, maxsplit=1) if match["paired"] else [body]
    return "\n".join(stripped for part in parts if (stripped := part.strip()))


def question_key(text: str) -> str:
    """A key for comparing questions: the text, unwrapped from a known prompt template and normalised."""
    return normalise(unwrap(text) or text)
