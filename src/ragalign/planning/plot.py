"""Plotting the frontier as a self-contained SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ragalign.planning.frontier import FrontierPoint

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 150, 48, 58
# Okabe and Ito's colours, which most people with impaired colour vision can tell apart.
_COLOURS = {"none": "#000000", "reorder": "#0072b2", "relax": "#d55e00", "backbone": "#009e73", "hybrid": "#cc79a7"}
_STYLE = """text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-size: 15px; font-weight: 600 } .grid { stroke: #ddd } .axis { stroke: #666 }
.order { stroke-dasharray: 6 4; opacity: .7 } .place { stroke-dasharray: 1 4; stroke-width: 2; opacity: .7 }"""


def frontier_svg(points: Sequence[FrontierPoint], title: str = "Tokens prefilled against relevance kept") -> str:
    """Plot the points of a frontier, with the bounds for the same demonstrations as dashed and dotted lines."""
    low = min((point.relevance for point in points), default=0.9)
    ticks_x = _ticks(min(low, 0.995), 1.0)
    ticks_y = _ticks(0.0, max((point.n_prefilled for point in points), default=1.0))

    def x(relevance: float) -> float:
        share = (relevance - ticks_x[0]) / (ticks_x[-1] - ticks_x[0])
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(tokens: float) -> float:
        return round(_HEIGHT - _BOTTOM - tokens / ticks_y[-1] * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [f'<text class="title" x="{_LEFT}" y="26">{escape(title)}</text>']
    bottom, right = y(0), _WIDTH - _RIGHT
    for tick in ticks_y:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:,.0f}</text>')
    for tick in ticks_x:
        parts.append(f'<line class="axis" x1="{x(tick)}" x2="{x(tick)}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text x="{x(tick)}" y="{bottom + 20}" text-anchor="middle">{100 * tick:.0f} %</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<text x="{middle_x}" y="{_HEIGHT - 16}" text-anchor="middle">relevance kept</text>')
    parts.append(
        f'<text x="20" y="{middle_y}" text-anchor="middle" transform="rotate(-90 20 {middle_y})">'
        "tokens prefilled per request</text>"
    )
    strategies = list(dict.fromkeys(point.strategy for point in points))
    for row, strategy in enumerate(strategies):
        colour = _COLOURS[strategy]
        mine = sorted((point for point in points if point.strategy == strategy), key=lambda point: point.relevance)
        run = [point for point in mine if point.personal == mine[0].personal]
        if len(run) > 1:
            line = " ".join(f"{x(point.relevance)},{y(point.n_prefilled)}" for point in run)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            for kind, bounds in (
                ("order", [point.prefix_bound for point in run]),
                ("place", [point.reuse_bound for point in run]),
            ):
                line = " ".join(f"{x(point.relevance)},{y(bound)}" for point, bound in zip(run, bounds, strict=True))
                parts.append(f'<polyline class="{kind}" points="{line}" fill="none" stroke="{colour}"/>')
        for point in mine:
            label = (
                f"{strategy}: {point.n_prefilled:,.0f} tokens at {point.relevance:.3f}, {point.personal} pinned; "
                f"bounds {point.prefix_bound:,.0f} and {point.reuse_bound:,.0f}"
            )
            parts.append(
                f'<circle cx="{x(point.relevance)}" cy="{y(point.n_prefilled)}" r="4.5" fill="{colour}">'
                f"<title>{escape(label)}</title></circle>"
            )
        height = _TOP + 8 + 22 * row
        parts.append(f'<circle cx="{right + 20}" cy="{height}" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{right + 32}" y="{height + 4}">{escape(strategy)}</text>')
    for row, (kind, label) in enumerate((("order", "bound, any order"), ("place", "bound, reuse anywhere"))):
        height = _TOP + 8 + 22 * (len(strategies) + row)
        parts.append(
            f'<line class="{kind}" stroke="#333" x1="{right + 12}" x2="{right + 28}" y1="{height}" y2="{height}"/>'
            f'<text x="{right + 32}" y="{height + 4}">{label}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img">\n<style>{_STYLE}</style>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`."""
    rough = (high - low) / 5
    size = 10.0
    while size > rough:
        size /= 10
    while size * 10 <= rough:
        size *= 10
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough)
    first, last = int(low / step + 1e-9), -int(-high / step + 1e-9)
    last += last * step < high - 1e-9
    return [number * step for number in range(first, last + 1)]
