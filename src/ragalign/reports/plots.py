"""Line and bar plots as scalable SVG, in the page's colours or as separate files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 46
_COLOURS = ("#3465a4", "#c2621a", "#2a8a6a", "#8a4fa3", "#b0304f", "#2d8fae", "#83701c", "#66707e")


@dataclass(frozen=True, slots=True)
class Series:
    """A line: its name, where its points are, their heights, and the ends of their intervals.

    Attributes:
        name: shown in the key.
        xs, ys: of the points; NaN heights are left out.
        lows, highs: of the intervals; empty for none.
        dashed: whether the line is dashed.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = field(default=())
    highs: Sequence[float] = field(default=())
    dashed: bool = False


def line_plot(
    series: Sequence[Series],
    *,
    x_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
    y_max: float | None = None,
) -> Markup:
    """Lines over shared axes; heights start at zero.

    Args:
        series: the lines, with xs on the scale of `x_ticks`.
        x_ticks: (place, label).
        x_label: the label of the horizontal axis.
        y_label: the label of the vertical axis.
        y_max: the top of the height's axis; by default a round number above all points.
    """
    top = y_max or _ceiling([value for line in series for value in (*line.ys, *line.highs) if math.isfinite(value)])
    left, right = min(place for place, _ in x_ticks), max(place for place, _ in x_ticks)
    span = (right - left) or 1.0

    def x(value: float) -> float:
        return _LEFT + 14 + (_WIDTH - _LEFT - _RIGHT - 28) * (value - left) / span

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(max(value, 0.0), top) / top

    parts = [_frame(top, y_label, x_label, y)]
    parts += [
        f'<text x="{x(place):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'
        for place, label in x_ticks
    ]
    for number, line in enumerate(series):
        # Shift lines that share positions slightly, so that their intervals do not overlap.
        shift = 5 * (number - (len(series) - 1) / 2)
        known = [place for place, value in enumerate(line.ys) if math.isfinite(value)]
        points = " ".join(f"{x(line.xs[place]) + shift:.1f},{y(line.ys[place]):.1f}" for place in known)
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        marks = [f'<polyline class="line" points="{points}"{dash}/>']
        for place in known:
            across, height = x(line.xs[place]) + shift, y(line.ys[place])
            title = f"{line.name}: {line.ys[place]:.3g}"
            if line.lows and math.isfinite(line.lows[place]):
                low, high = line.lows[place], line.highs[place]
                title += f" ({low:.3g} to {high:.3g})"
                marks.append(
                    f'<line class="span" x1="{across:.1f}" x2="{across:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
                )
            marks.append(f'<circle cx="{across:.1f}" cy="{height:.1f}" r="3.6"><title>{escape(title)}</title></circle>')
        parts.append(f'<g class="m{number % 8}">{"".join(marks)}</g>')
    return _svg(parts, f"{y_label} by {x_label}")


def bar_plot(
    groups: Sequence[str], series: Sequence[tuple[str, Sequence[float]]], *, x_label: str, y_label: str
) -> Markup:
    """Bars of several series, side by side in groups; heights start at zero."""
    top = _ceiling([value for _, values in series for value in values if math.isfinite(value)])
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(groups))

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top

    parts = [_frame(top, y_label, x_label, y)]
    each = 0.8 * width / max(1, len(series))
    for number, (name, values) in enumerate(series):
        bars = []
        for group, value in enumerate(values):
            if math.isfinite(value):
                across = _LEFT + (group + 0.1) * width + number * each
                title = escape(f"{name}, {groups[group]}: {value:.3g}")
                bars.append(
                    f'<rect class="area" x="{across:.1f}" y="{y(value):.1f}" width="{max(each - 1, 1):.1f}" '
                    f'height="{y(0) - y(value):.1f}"><title>{title}</title></rect>'
                )
        parts.append(f'<g class="m{number % 8}">{"".join(bars)}</g>')
    parts += [
        f'<text x="{_LEFT + (group + 0.5) * width:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
        f"{escape(label)}</text>"
        for group, label in enumerate(groups)
    ]
    return _svg(parts, f"{y_label} by {x_label}")


def key(names: Sequence[str]) -> Markup:
    """The names of a plot's series with their colours, as HTML."""
    items = "".join(
        f'<span class="key"><i class="mark m{number % 8}"></i>{escape(name)}</span>'
        for number, name in enumerate(names)
    )
    return Markup(f'<div class="keys-of-plot">{items}</div>')


def as_file(svg: str, names: Sequence[str]) -> str:
    """A standalone SVG file of a plot, with its colours and key."""
    colours = "".join(f".m{number}{{--m:{colour}}}" for number, colour in enumerate(_COLOURS))
    style = (
        f"<style>{colours}svg{{background:#fff;font:12px system-ui,sans-serif;fill:#5c6675}}.grid{{stroke:#e2e6ec}}"
        ".line{fill:none;stroke:var(--m);stroke-width:2}.span{stroke:var(--m);stroke-width:1.6;opacity:.55}"
        "circle,.area{fill:var(--m)}</style>"
    )
    place, items = float(_LEFT), []
    for number, name in enumerate(names):
        items.append(
            f'<g class="m{number % 8}"><rect class="area" x="{place:.0f}" y="{_HEIGHT + 4}" width="10" height="10"/>'
            f"</g>"
            f'<text x="{place + 15:.0f}" y="{_HEIGHT + 13}">{escape(name)}</text>'
        )
        place += 32 + 6.6 * len(name)
    head = str(svg).replace(
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}"',
        f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(_WIDTH, round(place))} {_HEIGHT + 24}"',
    )
    return head.replace("</svg>", f"{style}{''.join(items)}</svg>")


def _frame(top: float, y_label: str, x_label: str, height: Callable[[float], float]) -> str:
    ticks = []
    for part in range(5):
        value = top * part / 4
        across = height(value)
        ticks.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{across:.1f}" y2="{across:.1f}"/>'
            f'<text x="{_LEFT - 7}" y="{across + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
    middle = (_HEIGHT - _BOTTOM + _TOP) / 2
    return (
        f"{''.join(ticks)}"
        f'<text x="{(_WIDTH + _LEFT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )


def _svg(parts: Sequence[str], label: str) -> Markup:
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _ceiling(values: Sequence[float]) -> float:
    """A round number at least as high as all values."""
    highest = max(values, default=1.0)
    if highest <= 0:
        return 1.0
    unit = 10.0 ** math.floor(math.log10(highest))
    return next(
        unit * factor for factor in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 6, 8, 10) if highest <= unit * factor * 1.0001
    )
