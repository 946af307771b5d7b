"""Pairs the answers of two models to the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ragalign.errors import DataError

_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Prompted:
    """The prompt of an answer, as far as known.

    Attributes:
        id: the prompt's id in its file.
        text: the prompt; None if the file has ids only.
        bare: the prompt without its passages.
    """

    id: str | None
    text: str | None
    bare: str | None = None


def pair(asked: Sequence[Prompted], answered: Sequence[Prompted]) -> list[int | None]:
    """For each of `asked`, the position in `answered` of the answer to the same prompt; None if there is none.

    Prompts are paired by id, unless their texts differ; then by text; then by text without passages, since some files
    leave these out. Equal texts are paired in order.

    Raises:
        DataError: a text occurs a different number of times on the two sides, so its answers cannot be paired in order.
    """
    by_id = {prompt.id: position for position, prompt in enumerate(answered) if prompt.id is not None}
    found: list[int | None] = []
    for prompt in asked:
        position = by_id.get(prompt.id) if prompt.id is not None else None
        if position is not None and not _agree(prompt, answered[position]):
            position = None
        found.append(position)
    for key in (_text, _bare):
        _pair_in_order(asked, answered, found, key)
    return found


def _agree(left: Prompted, right: Prompted) -> bool:
    return left.text is None or right.text is None or bool({left.text, left.bare} & {right.text, right.bare} - {None})


def _pair_in_order(
    asked: Sequence[Prompted],
    answered: Sequence[Prompted],
    found: list[int | None],
    key: Callable[[Prompted], str | None],
) -> None:
    """Replace the remaining None values of `found`."""
    taken = {position for position in found if position is not None}
    places: dict[str, list[int]] = {}
    for position, prompt in enumerate(answered):
        text = key(prompt)
        if text is not None and position not in taken:
            places.setdefault(text, []).append(position)
    waiting: dict[str, list[int]] = {}
    for number, prompt in enumerate(asked):
        text = key(prompt)
        if found[number] is None and text is not None:
            waiting.setdefault(text, []).append(number)
    for text, numbers in waiting.items():
        here = places.get(text, [])
        if not here:
            continue
        if len(here) != len(numbers):
            raise DataError(
                f"the prompt {text[:_SHOWN]!r} occurs {len(numbers)} and {len(here)} times, so its answers cannot "
                "be paired in order; give the rows of both files ids"
            )
        for number, position in zip(numbers, here, strict=True):
            found[number] = position


def _text(prompt: Prompted) -> str | None:
    return prompt.text


def _bare(prompt: Prompted) -> str | None:
    return prompt.bare if prompt.bare is not None else prompt.text
