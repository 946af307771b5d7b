"""The page's building blocks: sections, tables and names. Whatever is called `html` must be escaped already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ragalign.reports.formats import interval, number, signed
from ragalign.statistics import Estimate

N_COLOURS = 8


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        label: its heading, which stands beside every cell on narrow screens.
        html: the heading's markup where it is more than the label, such as an axis.
        kind: ``number``, ``text`` or ``chart``.
    """

    label: str
    html: str | None = None
    kind: str = "number"


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: markup of its heading and of every other cell, and the place of the model it is about."""

    html: str
    cells: Sequence[str]
    place: int | None = None


def section(title: str, note: str, html: str) -> str:
    """A titled part of a comparison."""
    lead = f'<p class="lead">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h3>{escape(title)}</h3>{lead}{html}</section>'


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table whose first column holds row headings; on narrow screens every row becomes a block."""
    heads = "".join(
        f'<th scope="col" class="{column.kind}">{escape(column.label) if column.html is None else column.html}</th>'
        for column in columns
    )
    lines = []
    for row in rows:
        cells = "".join(
            f'<td class="{column.kind}" data-label="{escape(column.label)}">{cell}</td>'
            for column, cell in zip(columns[1:], row.cells, strict=True)
        )
        mark = "" if row.place is None else f' class="{colour(row.place)}"'
        lines.append(f'<tr{mark}><th scope="row">{row.html}</th>{cells}</tr>')
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, html: str) -> str:
    """A part that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def name(place: int | None, text: str) -> str:
    """A model's name with the mark of its colour; others have none."""
    mark = f'<i class="mark {colour(place)}"></i>' if place is not None else ""
    return f'<span class="name">{mark}<span>{escape(text)}</span></span>'


def colour(place: int) -> str:
    """The class that gives the model at a place its colour."""
    return f"m{place % N_COLOURS}"


def stacked(estimate: Estimate | None, unit: str, *, sign: bool = False) -> str:
    """A figure, a difference with its sign, and the interval below."""
    if estimate is None:
        return number(None, unit)
    ends = interval(estimate, unit)
    value = signed(estimate.value, unit) if sign else number(estimate.value, unit)
    return value + (f'<span class="ends">{ends}</span>' if ends else "")


def with_unit(label: str, unit: str) -> str:
    """A heading with the unit of what stands below it; points are their own unit."""
    return label if unit == "points" else f"{label},\N{NO-BREAK SPACE}{unit}"
