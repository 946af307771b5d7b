"""One finding, and how a check that fails itself becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check.
        status: "ok"; "warning", where it works but worse than it could; or "wrong", where it does not.
        detail: the reason, and what to do where something is to be done.
    """

    name: str
    status: Status
    detail: str


def run(name: str, check: Callable[[], Iterator[Check]]) -> list[Check]:
    """What a check finds; an error in it is a finding too."""
    try:
        return list(check())
    # Broken models break anything that looks at them: each check says so in its own line.
    except Exception as error:
        return [Check(name, "wrong", " ".join(str(error).split())[:300] or type(error).__name__)]
