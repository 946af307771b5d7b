"""The figures as one self-contained HTML page, and as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from ragalign.reports.formats import NONE, count, number
from ragalign.reports.markup import Column, Row, section, stacked, table, with_range
from ragalign.reports.plots import Series, key, line_plot
from ragalign.reports.rendering import asset, policy
from ragalign.reports.rendering import render as render_template
from ragalign.runs.machine import version
from ragalign.statistics import Estimate
from real.figures import RETRIEVED, Figures, PartFigures, Slice

# Label, unit and whether a lower value is better.
METRICS = {
    "nll": ("reference, nats", "nats", True),
    "nll_first32": ("its first 32 tokens", "nats", True),
    "nll_rest": ("those after them", "nats", True),
    "similarity": ("similarity", "points", False),
    "stopped": ("stopped by itself, %", "%", False),
    "repetition": ("repetition, %", "%", True),
    "length_ratio": ("length to reference", "points", False),
    "prompt_strict": ("prompts, strict, %", "%", False),
    "prompt_loose": ("prompts, loose, %", "%", False),
    "instruction_strict": ("instructions, strict, %", "%", False),
    "instruction_loose": ("instructions, loose, %", "%", False),
}
_LIKELIHOOD = ("nll", "nll_first32", "nll_rest")
_ANSWERS = ("similarity", "stopped", "repetition", "length_ratio")
_IFEVAL = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose", "stopped", "repetition")
_HEADLINES = ("nll", "similarity", "instruction_loose")


def render(figures: Figures, settings: Mapping[str, Any], *, created: datetime) -> str:
    """The page as text."""
    n = max((metric.n for metrics in figures.alpaca.means.values() for metric in metrics.values()), default=0)
    facts = [
        f"model: {settings['model'].removeprefix('packaged:')}",
        f"pool: {settings['pool']['name']}, {count(settings['pool']['n'])} demonstrations",
        f"encoder: {settings['encoder']}",
        f"{count(n)} questions of AlpacaEval",
        f"made with ragalign {version('ragalign')} on {created:%d %B %Y, %H:%M} UTC",
    ]
    return render_template(
        "results_real.html",
        room="real",
        policy=policy(""),
        title="What demonstrations do for a real base model",
        style=asset("page.css") + asset("plots.css"),
        facts=facts,
        navigation=[],
        notes=list(summary(figures)),
        figures=Markup().join(_sections(figures, settings)),
    )


def summary(figures: Figures) -> Iterator[str]:
    """Conclusions from the intervals, one sentence per headline and baseline."""
    parts = {"nll": figures.alpaca, "similarity": figures.alpaca, "instruction_loose": figures.ifeval}
    for metric in _HEADLINES:
        for baseline, found in parts[metric].against.items():
            better = _beyond(found, metric, sign=-1 if METRICS[metric][2] else 1)
            worse = _beyond(found, metric, sign=1 if METRICS[metric][2] else -1)
            known = [name for name, metrics in found.items() if metric in metrics and metrics[metric].n]
            equal = [name for name in known if name not in {*better, *worse}]
            if better or worse or equal:
                yield (
                    f"{_plain(metric)}, against {baseline}: better {_list(better)}; worse {_list(worse)}; "
                    f"not told apart {_list(equal)}."
                )


def text(figures: Figures) -> str:
    """The main table for a terminal."""
    lines = []
    for name, part, metrics in (
        ("AlpacaEval", figures.alpaca, ("nll", "nll_first32", "similarity", "stopped", "repetition")),
        ("IFEval", figures.ifeval, ("prompt_loose", "instruction_loose", "stopped", "repetition")),
        ("Many-shot", figures.many_shot, ("nll", "nll_first32")),
        ("Decoding", figures.decoding, ("instruction_loose", "stopped", "repetition")),
    ):
        lines.append(f"{name:40}" + "".join(f"{metric:>20}" for metric in metrics))
        for condition, found in part.means.items():
            cells = (_plain_number(found[metric].value if metric in found else None, metric) for metric in metrics)
            lines.append(f"  {condition:38}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join([*lines, *summary(figures)])


def _sections(figures: Figures, settings: Mapping[str, Any]) -> Iterator[Markup]:
    alpaca, ifeval = figures.alpaca, figures.ifeval
    sizes = settings["conditions"]
    yield section("AlpacaEval: likelihood of the reference", "", _means(alpaca, _LIKELIHOOD, sizes, "alpaca"))
    yield section("AlpacaEval: answers", "", _means(alpaca, _ANSWERS, sizes, "alpaca"))
    yield section("IFEval", "", _means(ifeval, _IFEVAL, sizes, "ifeval"))
    for title, part, metrics in (("AlpacaEval", alpaca, (*_LIKELIHOOD[:2], *_ANSWERS)), ("IFEval", ifeval, _IFEVAL)):
        for baseline, found in part.against.items():
            yield section(f"{title}: difference to {baseline}", "", _estimates(found, metrics, sign=True))
        yield section(f"{title}: the drawn sets, lowest to highest", "", _spread(part))
    yield _sliced("By category", figures.by_category)
    yield _sliced("By the similarity of the nearest demonstration", figures.by_nearness)
    yield section("Many-shot", "Nats per token of the reference by the number of demonstrations.", _many_shot(figures))
    note = "IFEval with nine retrieved demonstrations in the form “ica”."
    yield section("Decoding", note, _estimates(figures.decoding.means, _IFEVAL))
    for baseline, found in figures.decoding.against.items():
        yield section(f"Decoding: difference to {baseline}", "", _estimates(found, _IFEVAL, sign=True))


def _means(part: PartFigures, metrics: Sequence[str], sizes: Mapping[str, Mapping[str, float]], name: str) -> Markup:
    columns = [Column("condition", kind="text"), Column("demonstrations"), Column("prompt tokens")]
    columns += [Column(METRICS[metric][0]) for metric in metrics]
    rows = []
    for condition, found in part.means.items():
        own = [
            size for place, size in sizes.items() if place == f"{name}/{condition}" or _is_set(place, name, condition)
        ]
        shown = [
            number(_average([size["demonstrations"] for size in own]), "%"),
            number(_average([size["prompt_tokens"] for size in own]), "words"),
        ]
        rows.append(Row(condition, [*shown, *(_cell(found.get(metric), metric) for metric in metrics)]))
    return table(columns, rows)


def _is_set(place: str, part: str, condition: str) -> bool:
    return condition == "fixed" and place.startswith(f"{part}/fixed ")


def _estimates(found: Mapping[str, Mapping[str, Estimate]], metrics: Sequence[str], *, sign: bool = False) -> Markup:
    columns = [Column("condition", kind="text"), *(Column(METRICS[metric][0]) for metric in metrics)]
    rows = [
        Row(condition, [_cell(values.get(metric), metric, sign=sign) for metric in metrics])
        for condition, values in found.items()
    ]
    return table(columns, rows)


def _spread(part: PartFigures) -> Markup:
    """How much the mean depends on which set was drawn: one set can beat retrieval by luck."""
    labels = ("mean of the sets", "lowest set", "highest set", RETRIEVED, f"sets better than {RETRIEVED}")
    columns = [Column("metric", kind="text"), *(Column(label) for label in labels)]
    rows = []
    for metric, sets in part.sets.items():
        values = list(sets.values())
        retrieved = part.means.get(RETRIEVED, {}).get(metric)
        better = NONE
        if retrieved is not None:
            sign = -1 if METRICS[metric][2] else 1
            better = f"{sum(sign * value > sign * retrieved.value for value in values)} of {len(values)}"
        shown = (_average(values), min(values), max(values), None if retrieved is None else retrieved.value)
        rows.append(Row(METRICS[metric][0], [*(_plain_number(estimate, metric) for estimate in shown), better]))
    return table(columns, rows)


def _plain_number(value: float | None, metric: str) -> str:
    if value is None or not _is_fine(metric):
        return number(value, METRICS[metric][1])
    return f"{value:.3f}"


def _sliced(title: str, by_metric: Mapping[str, Sequence[Slice]]) -> Markup:
    parts = []
    for metric, slices in by_metric.items():
        others = list(dict.fromkeys(name for subset in slices for name in subset.differences))
        columns = [Column("questions", kind="text"), Column("number"), *(Column(f"to {name}") for name in others)]
        rows = [
            Row(
                subset.name,
                [count(subset.n), *(_cell(subset.differences.get(name), metric, sign=True) for name in others)],
            )
            for subset in slices
        ]
        if rows:
            note = "Lower is better." if METRICS[metric][2] else "Higher is better."
            parts.append(section(f"{title}: {_plain(metric)}, {RETRIEVED} against others", note, table(columns, rows)))
    return Markup().join(parts)


def _many_shot(figures: Figures) -> Markup:
    means = figures.many_shot.means
    kinds = list(dict.fromkeys(name.rpartition(" ")[0] for name in means))
    sizes = sorted({int(name.rpartition(" ")[2]) for name in means})
    if not sizes:
        return Markup()
    places = {n: math.log(n) for n in sizes}
    series = []
    for kind in kinds:
        own = [(n, means[f"{kind} {n}"]["nll"]) for n in sizes if f"{kind} {n}" in means]
        ys, lows, highs = zip(*((estimate.value, estimate.low, estimate.high) for _, estimate in own), strict=True)
        series.append(Series(kind, [places[n] for n, _ in own], ys, lows, highs))
    plot = line_plot(
        series,
        x_ticks=[(places[n], str(n)) for n in sizes],
        x_label="demonstrations",
        y_label="nats per token",
    )
    return Markup('{}<div class="scroll">{}</div>{}').format(key(kinds), plot, _estimates(means, _LIKELIHOOD))


def _cell(estimate: Estimate | None, metric: str, *, sign: bool = False) -> str:
    unit = METRICS[metric][1]
    if _is_fine(metric):
        return NONE if estimate is None else _fine(estimate, sign=sign)
    return stacked(estimate, unit, sign=sign)


def _is_fine(metric: str) -> bool:
    """Whether differences are often in the third decimal."""
    return metric in (*_LIKELIHOOD, "similarity")


def _fine(estimate: Estimate, *, sign: bool) -> Markup:
    value, low, high = (f"{end:{'+' if sign else ''}.3f}".replace("-", "−") for end in _ends(estimate))
    ends = "" if math.isnan(estimate.low) else f"{low} to {high}"
    return with_range(value, ends)


def _ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _beyond(found: Mapping[str, Mapping[str, Estimate]], metric: str, *, sign: int) -> list[str]:
    """The conditions whose interval lies on one side of zero."""
    ends = {name: metrics[metric] for name, metrics in found.items() if metric in metrics}
    return [name for name, estimate in ends.items() if (estimate.low > 0 if sign > 0 else estimate.high < 0)]


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _plain(metric: str) -> str:
    return {
        "nll": "Reference likelihood",
        "similarity": "Similarity to the reference",
        "instruction_loose": "Instructions followed (loose)",
    }[metric]


def _average(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
