"""Options that take several values in a row, as in ``--pool a.jsonl b.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence

_SEVERAL = ("--pool", "--id", "--completions")


def expand(arguments: Sequence[str]) -> list[str]:
    """Repeat the option before each of its values: Typer takes one value per option."""
    expanded: list[str] = []
    option: str | None = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in _SEVERAL else None
            first = True
        elif option is not None and not first:
            expanded.append(option)
        else:
            first = False
        expanded.append(argument)
    return expanded
