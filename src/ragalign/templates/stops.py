"""The stop strings of templates: what ends an answer."""

from __future__ import annotations

import re

# Special tokens that models generate at the end of a text, as far as the tokenizer does not remove them.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "</s>")
# A closing that is a code fence on its own line.
_FENCE = re.compile(r"\n(`{3,}|~{3,})[^\S\n]*(?:\n\s*)?")


def fence_of(closing: str) -> str:
    """The fence of answers that `closing` ends, such as three backticks, or ""."""
    return closing.strip() if _FENCE.fullmatch(closing) else ""


def default_stop(opening: str, closing: str) -> tuple[str, ...]:
    """The beginning of the next turn and, unless it is a code fence, the end of an answer."""
    heading = opening.strip().splitlines()[0]
    next_turn = f"\n{heading}" if closing.endswith("\n") else heading
    # With its line break, so that the same characters inside a line do not end an answer.
    ends = re.search(r"(\n?)[^\S\n]*(\S.*)", closing.rstrip(), re.DOTALL)
    closes = (ends[1] + ends[2],) if ends and not _FENCE.fullmatch(closing) else ()
    return tuple(dict.fromkeys((next_turn, *closes)))


def invented_turn(opening: str, closing: str) -> tuple[str, ...]:
    """The closing with the marker of the next heading, unless it is only a blank line."""
    marker = re.match(r"\s*(#+ )", opening)
    distinct = closing.strip() or closing.count("\n") > 2
    return (closing + marker[0],) if marker and distinct else ()


def answer_heading(middle: str) -> tuple[str, ...]:
    """The heading or label before an answer, which a model that begins another answer writes too."""
    lines = [line.strip() for line in middle.splitlines()]
    return tuple(f"\n{line}" for line in lines if re.match(r"#+ ", line) or re.fullmatch(r"\w.*:", line))
