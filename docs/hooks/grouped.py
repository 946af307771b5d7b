"""Griffe extension: docstrings that describe several names at once, as in ``low, high: the interval's ends``."""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(\s*)(?:Args|Attributes):$")
_GROUP = re.compile(r"^\s+\w+(?:, \w+)+:")


class GroupedNames(griffe.Extension):
    """Gives each name a line of its own before docstrings are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = split_groups(obj.docstring.value)


def split_groups(text: str) -> str:
    """A docstring in Google's style in which every item of Args and Attributes has one name."""
    out: list[str] = []
    indent: int | None = None
    names: list[str] = []
    rest: list[str] = []

    def flush() -> None:
        for name in names:
            out.extend([f"{' ' * (indent or 0)}{name}:{rest[0]}", *rest[1:]])
        names.clear()
        rest.clear()

    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip())
        if names and line.strip() and depth > (indent or 0):
            rest.append(line)
            continue
        flush()
        if section := _SECTION.match(line):
            indent = len(section[1]) + 4
        elif line.strip() and indent is not None and depth < indent:
            indent = None
        if indent is not None and depth == indent and _GROUP.match(line):
            head, _, tail = line.partition(":")
            names.extend(head.strip().split(", "))
            rest.append(tail)
        else:
            out.append(line)
    flush()
    return "\n".join(out)
