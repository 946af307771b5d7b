"""Charts as inline SVG and plain HTML: coloured by the page's style sheet, without a script.

Horizontal charts have coordinates in percent, so that they fit any width while their text keeps its size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ragalign.comparisons.distributions import Distribution
from ragalign.reports.formats import count, interval, number
from ragalign.statistics import Estimate, Shares

_OUTCOMES = ("win", "tie", "lose")
_RADIUS = 92.0


@dataclass(frozen=True, slots=True)
class Axis:
    """A horizontal axis.

    Attributes:
        low, high: its ends.
        ticks: where it is labelled.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, estimates: Sequence[Estimate], *, include: Sequence[float] = ()) -> Axis:
        """An axis with round ticks on which all intervals fit."""
        ends = [
            end for estimate in estimates for end in (estimate.value, estimate.low, estimate.high) if math.isfinite(end)
        ]
        ends += include
        low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        step = _round_step((high - low) / 4)
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        ticks = tuple(number_ * step for number_ in range(first, last + 1))
        return cls(ticks[0], ticks[-1], ticks)

    def percent(self, value: float) -> float:
        """The position of a value, in percent of the width; infinite values are at the ends."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return 2 + 96 * share

    def html(self, unit: str) -> Markup:
        """The labels above the charts."""
        digits = 0 if all(tick == round(tick) for tick in self.ticks) else 1
        if digits and any(abs(tick * 10 - round(tick * 10)) > 1e-6 for tick in self.ticks):
            digits = 2
        marks = "".join(
            f'<span style="left:{self.percent(tick):.2f}%">{f"{tick:,.{digits}f}".replace("-", "−")}</span>'
            for tick in self.ticks
        )
        unit_mark = "" if unit == "points" else f" title='{escape(unit)}'"
        return Markup(f'<div class="axis" aria-hidden="true"{unit_mark}>{marks}</div>')


def interval_chart(estimate: Estimate, axis: Axis, unit: str, *, zero: float | None = None) -> Markup:
    """A dot with its interval on a shared axis; `zero` marks no difference."""
    grid = "".join(
        f'<line class="grid" x1="{axis.percent(tick):.2f}%" x2="{axis.percent(tick):.2f}%" y1="0" y2="100%"/>'
        for tick in axis.ticks
    )
    if zero is not None and axis.low <= zero <= axis.high:
        place = f"{axis.percent(zero):.2f}%"
        grid += f'<line class="zero" x1="{place}" x2="{place}" y1="0" y2="100%"/>'
    label = f"{number(estimate.value, unit)}, 95 % interval {interval(estimate, unit)}"
    if math.isnan(estimate.value):
        return Markup(f'<svg class="interval" role="img" aria-label="no figure">{grid}</svg>')
    ends = ""
    if not math.isnan(estimate.low):
        low, high = axis.percent(estimate.low), axis.percent(estimate.high)
        ends = f'<line class="span" x1="{low:.2f}%" x2="{high:.2f}%" y1="50%" y2="50%"/>'
    dot = f'<circle cx="{axis.percent(estimate.value):.2f}%" cy="50%" r="4.5"/>'
    return Markup(
        f'<svg class="interval" role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
        f"{grid}{ends}{dot}</svg>"
    )


def level_chart(
    names: Sequence[str], estimates: Sequence[Estimate | None], unit: str, *, fallback: Sequence[float] = ()
) -> Markup:
    """One point with its interval per level, side by side on a vertical axis, joined by a line.

    Args:
        names: of the levels, in order.
        estimates: what was measured at each; None where nothing was.
        unit: of the estimates.
        fallback: plain values to draw where there are no estimates at all.
    """
    values = [estimate.value if estimate else math.nan for estimate in estimates]
    bounds = [(estimate.low, estimate.high) if estimate else (math.nan, math.nan) for estimate in estimates]
    if all(math.isnan(value) for value in values) and fallback:
        values, bounds, unit = list(fallback), [(math.nan, math.nan)] * len(fallback), "words"
    known = [end for value, pair in zip(values, bounds, strict=True) for end in (value, *pair) if math.isfinite(end)]
    axis = Axis.around([], include=known or (0.0, 1.0))
    # SVG counts from above.
    heights = [math.nan if math.isnan(value) else 100 - axis.percent(value) for value in values]
    xs = [100 * (place + 0.5) / len(names) for place in range(len(names))]
    parts = []
    for tick in axis.ticks:
        y = 100 - axis.percent(tick)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y:.2f}%" y2="{y:.2f}%"/>')
    for (x, y), (next_x, next_y) in itertools.pairwise(zip(xs, heights, strict=True)):
        if math.isfinite(y) and math.isfinite(next_y):
            parts.append(f'<line class="path" x1="{x:.2f}%" x2="{next_x:.2f}%" y1="{y:.2f}%" y2="{next_y:.2f}%"/>')
    for name, x, y, value, (low, high) in zip(names, xs, heights, values, bounds, strict=True):
        if math.isnan(y):
            continue
        ends = ""
        if math.isfinite(low) and math.isfinite(high):
            y1, y2 = 100 - axis.percent(high), 100 - axis.percent(low)
            ends = f'<line class="span" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y1:.2f}%" y2="{y2:.2f}%"/>'
        between = f" ({number(low, unit)} to {number(high, unit)})" if ends else ""
        label = escape(f"{name}: {number(value, unit)}{between}")
        parts.append(f'<g><title>{label}</title>{ends}<circle cx="{x:.2f}%" cy="{y:.2f}%" r="4.5"/></g>')
    ticks = "".join(
        f'<span style="top:{100 - axis.percent(tick):.2f}%">{number(tick, "words" if tick == int(tick) else unit)}'
        "</span>"
        for tick in axis.ticks
    )
    labels = "".join(f'<span style="width:{100 / len(names):.3f}%">{escape(name)}</span>' for name in names)
    text = escape("; ".join(f"{name}: {number(value, unit)}" for name, value in zip(names, values, strict=True)))
    return Markup(
        f'<div class="levels"><div class="ticks" aria-hidden="true">{ticks}</div>'
        f'<svg role="img" aria-label="{text}">{"".join(parts)}</svg>'
        f'<div class="names" aria-hidden="true">{labels}</div></div>'
    )


def outcome_bar(outcome: Shares) -> Markup:
    """Win, tie and lose shares as one bar."""
    parts, words = [], []
    for name in _OUTCOMES:
        share: Estimate = getattr(outcome, name)
        if math.isnan(share.value):
            return Markup('<div class="bar empty">nothing scored</div>')
        value = 100 * share.value
        words.append(f"{name} {value:.1f} %")
        text = f"{value:.0f}" if value >= 6 else ""
        if value > 0:
            parts.append(f'<span class="{name}" style="flex-grow:{value:.4f}">{text}</span>')
    label = ", ".join(words)
    return Markup(f'<div class="bar" role="img" aria-label="{label}" title="{label}">{"".join(parts)}</div>')


def histogram(shown: Distribution, model: str) -> Markup:
    """The share of each bin for one model, on the scale that all models of the distribution have."""
    totals = {name: sum(counts) or 1 for name, counts in shown.counts.items()}
    highest = max(n / totals[name] for name, counts in shown.counts.items() for n in counts) or 1.0
    counts = shown.counts[model]
    width = 100 / len(counts)
    bars = []
    for place, in_bin in enumerate(counts):
        height = 100 * in_bin / totals[model] / highest
        text = escape(
            f"{_bin(shown, place)}: {count(in_bin)} of {count(totals[model])} ({100 * in_bin / totals[model]:.1f} %)"
        )
        bars.append(
            f'<g><title>{text}</title><rect class="hit" x="{place * width:.3f}%" y="0" width="{width:.3f}%" '
            f'height="100%"/><rect class="column" x="{(place + 0.08) * width:.3f}%" y="{100 - height:.2f}%" '
            f'width="{0.84 * width:.3f}%" height="{height:.2f}%"/></g>'
        )
    return Markup(
        f'<svg class="histogram" role="img" aria-label="{escape(shown.label)} of {escape(model)}">{"".join(bars)}</svg>'
        f"{_bin_axis(shown)}"
    )


def radar(axes: Sequence[str], series: Mapping[str, Sequence[Estimate]], low: float, high: float, unit: str) -> Markup:
    """Several models on several axes that share one scale, from `low` in the middle to `high` outside.

    Args:
        axes: the labels of the axes, at least three.
        series: the estimates of every model, one per axis.
        low: the value in the middle.
        high: the value on the outer ring.
        unit: of the values.
    """
    directions = [2 * math.pi * place / len(axes) - math.pi / 2 for place in range(len(axes))]
    rings = []
    for ring in range(1, 5):
        points = " ".join(_point(angle, _RADIUS * ring / 4) for angle in directions)
        rings.append(f'<polygon class="ring" points="{points}"/>')
    spokes = "".join(
        f'<line class="ring" x1="0" y1="0" x2="{_xy(angle, _RADIUS)[0]:.1f}" y2="{_xy(angle, _RADIUS)[1]:.1f}"/>'
        for angle in directions
    )
    labels = []
    for angle, text in zip(directions, axes, strict=True):
        x, y = _xy(angle, _RADIUS + 12)
        anchor = "middle" if abs(x) < 12 else "start" if x > 0 else "end"
        labels.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(_short(text))}</text>')
    shapes = []
    for place, (name, estimates) in enumerate(series.items()):
        values = [estimate.value if math.isfinite(estimate.value) else low for estimate in estimates]
        radii = [_RADIUS * min(max((value - low) / (high - low), 0.0), 1.0) for value in values]
        points = " ".join(_point(angle, radius) for angle, radius in zip(directions, radii, strict=True))
        dots = "".join(
            f'<circle cx="{_xy(angle, radius)[0]:.1f}" cy="{_xy(angle, radius)[1]:.1f}" r="2.6"><title>'
            f"{escape(f'{name}, {axis}: {number(estimate.value, unit)} ({interval(estimate, unit)})')}</title></circle>"
            for angle, radius, axis, estimate in zip(directions, radii, axes, estimates, strict=True)
        )
        shapes.append(f'<g class="m{place % 8}"><polygon class="area" points="{points}"/>{dots}</g>')
    ends = f"{number(low, unit)} in the middle, {number(high, unit)} outside"
    return Markup(
        f'<figure class="radar"><svg viewBox="-190 -122 380 244" role="img" aria-label="radar chart, {escape(ends)}">'
        f"{''.join(rings)}{spokes}{''.join(shapes)}{''.join(labels)}</svg>"
        f"<figcaption>{escape(ends)}{'' if unit == 'points' else f' ({escape(unit)})'}</figcaption></figure>"
    )


def _bin(shown: Distribution, place: int) -> str:
    if shown.values:
        return f"{shown.values[place]:g}"
    low, high = shown.edges[place], shown.edges[place + 1]
    return f"{low:,g} or more" if shown.is_open and place == len(shown.edges) - 2 else f"{low:,g} to {high:,g}"


def _bin_axis(shown: Distribution) -> Markup:
    n = len(shown.edges) - 1
    if shown.values:
        whole = [(place, value) for place, value in enumerate(shown.values) if value == int(value)] or [
            *enumerate(shown.values)
        ]
        every = math.ceil(len(whole) / 11)
        marks = [((place + 0.5) / n, f"{value:g}") for place, value in whole[::every]]
    else:
        every = max(1, math.ceil(n / 4))
        marks = [(place / n, f"{shown.edges[place]:,g}") for place in range(0, n + 1, every)]
        if shown.is_open and marks[-1][0] == 1:
            marks[-1] = (1, f"{marks[-1][1]}+")
    labels = "".join(f'<span style="left:{100 * at:.2f}%">{escape(text)}</span>' for at, text in marks)
    return Markup(f'<div class="axis" aria-hidden="true">{labels}</div>')


def _round_step(rough: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(rough))
    return power * next(step for step in (1, 2, 5, 10) if step * power >= rough * 0.999)


def _xy(angle: float, radius: float) -> tuple[float, float]:
    return radius * math.cos(angle), radius * math.sin(angle)


def _point(angle: float, radius: float) -> str:
    x, y = _xy(angle, radius)
    return f"{x:.1f},{y:.1f}"


def _short(text: str) -> str:
    return text if len(text) <= 14 else f"{text[:13]}…"
