"""The result of a check, also for checks that fail with an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of a check.

    Attributes:
        name: name of the check.
        status: "ok"; "warning" if it works, but not well; "wrong" if it does not work.
        detail: the reason, and what to do.
    """

    name: str
    status: Status
    detail: str


def run(name: str, check: Callable[[], Iterator[Check]]) -> list[Check]:
    """Run a check; an error becomes a result."""
    try:
        return list(check())
    # A broken model can break any check: each reports it in its own line.
    except Exception as error:
        return [Check(name, "wrong", " ".join(str(error).split())[:300] or type(error).__name__)]
