"""Request bodies as pydantic models: sizes are checked first, and errors name the field in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ragalign.serving.errors import ApiError
from ragalign.serving.settings import Limits

B = TypeVar("B", bound=BaseModel)


def at_most(most: int) -> BeforeValidator:
    """Reject a list or an object by its size, before its items are examined."""

    def check(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise ValueError(f"{len(value):,} items; at most {most:,} are allowed")
        return value

    return BeforeValidator(check)


class Body(BaseModel):
    """A part of a request's body: no type is converted, and further fields are kept in `model_extra`."""

    model_config = ConfigDict(strict=True, extra="allow")


@dataclass(frozen=True, slots=True)
class _Place:
    """The location and the reason of an error in a body."""

    param: str
    message: str


def parse(kind: type[B], body: Mapping[str, Any], limits: Limits) -> B:
    """Validate a body as its model.

    Sizes are checked first, and lists stop at their first invalid item: a megabyte of invalid items would otherwise
    block the event loop for most of a minute.

    Raises:
        ApiError: 400; the message names the first invalid field.
    """
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > limits.max_messages:
        raise ApiError(400, f"{len(messages):,} messages; at most {limits.max_messages} are allowed", param="messages")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        place = _first(error)
        raise ApiError(
            400, f"{place.param}: {place.message}" if place.param else place.message, param=place.param or None
        ) from None


def _first(error: ValidationError) -> _Place:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    # Of the alternatives of a union, report the one that got furthest: into the lists, and then along them.
    top = details[0]["loc"][:1]
    places = [_steps(each["loc"]) for each in details if each["loc"][:1] == top]
    furthest = max(places, key=lambda steps: (len(steps), [step for step in steps if isinstance(step, int)]))
    found = (each for each in details if each["loc"][:1] == top and _steps(each["loc"]) == furthest)
    first, *others = dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in found)
    message = " or ".join(
        [first[:1].lower() + first[1:], *(other.removeprefix("Input should be ") for other in others)]
    )
    return _Place(_path(furthest), message)


def _steps(location: tuple[int | str, ...]) -> list[int | str]:
    """The location without pydantic's names for the alternatives of a union."""
    return [
        step
        for step in location
        if isinstance(step, int) or (not any(mark in step for mark in "[(") and step not in _KINDS)
    ]


_KINDS = frozenset({"str", "int", "float", "bool"})


def _path(steps: list[int | str]) -> str:
    text = ""
    for step in steps:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text
