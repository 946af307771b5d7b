"""The page's building blocks: sections, tables and names. Plain text is escaped; markup must be `Markup`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ragalign.reports.formats import interval, number, signed
from ragalign.reports.rendering import block
from ragalign.statistics import Estimate


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading, which is beside every cell on narrow screens.
        heading: what the heading shows where that is more than the label, such as an axis.
        kind: ``number``, ``text`` or ``chart``.
    """

    label: str
    heading: Markup | None = None
    kind: str = "number"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its heading and every other cell, and the place of the model it is about."""

    heading: str
    cells: Sequence[str]
    place: int | None = None


def section(title: str, note: str, body: str) -> Markup:
    """A titled part of a comparison."""
    return block("section", title, note, body)


def table(columns: Sequence[Column], rows: Sequence[Row]) -> Markup:
    """A table whose first column holds row headings; on narrow screens every row becomes a block."""
    return block("table", columns, rows)


def details(summary: str, body: str) -> Markup:
    """A collapsible part."""
    return block("details", summary, body)


def name(place: int | None, text: str) -> Markup:
    """A name, with a colour mark if it is a model's."""
    return block("name", place, text)


def stacked(estimate: Estimate | None, unit: str, *, sign: bool = False) -> Markup:
    """A figure, a difference with its sign, and the interval below."""
    if estimate is None:
        return block("stacked", number(None, unit), "")
    value = signed(estimate.value, unit) if sign else number(estimate.value, unit)
    return block("stacked", value, interval(estimate, unit))


def with_range(value: str, ends: str) -> Markup:
    """A figure and the range below it, both as text."""
    return block("stacked", value, ends)


def joined(parts: Iterable[str]) -> Markup:
    """Concatenate parts; plain text is escaped."""
    return Markup().join(parts)


def with_unit(label: str, unit: str) -> str:
    """A heading with the unit of the figures below it; points are their own unit."""
    return label if unit == "points" else f"{label},\N{NO-BREAK SPACE}{unit}"
