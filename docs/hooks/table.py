"""Tables in Markdown."""

from __future__ import annotations

from typing import Any


def table(head: tuple[str, ...], rows: list[Any]) -> str:
    """A table from its head and rows of cells."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
