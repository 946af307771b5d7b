"""Takes instructions out of the prompt templates that some pools were saved in."""

from __future__ import annotations

import re

from ragalign.text import normalise

# The prompt that Stanford Alpaca trained with, with and without an input. Pools that went through training
# scripts hold it with its line breaks collapsed to spaces, and with or without the closing response header.
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
    """The instruction inside a known prompt template, or None if ``text`` is in none.

    An input is joined to its instruction with a line break, as for rows in the Alpaca shape.
    Whitespace around both, which is the template's, goes.
    """
    match = _ALPACA.fullmatch(text)
    if match is None:
        return None
    body: str = match["body"]
    parts = _ALPACA_INPUT.split(body, maxsplit=1) if match["paired"] else [body]
    return "\n".join(stripped for part in parts if (stripped := part.strip()))


def question_key(text: str) -> str:
    """What has to agree for two questions to count as the same: normalised, out of a known prompt template."""
    return normalise(unwrap(text) or text)
