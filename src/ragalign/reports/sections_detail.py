"""The detailed sections about one comparison: aspects, categories, distributions, upstream's own figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from ragalign.comparisons.metrics import scale_of
from ragalign.comparisons.summary import Summary
from ragalign.reports.charts import Axis, histogram, radar
from ragalign.reports.formats import count
from ragalign.reports.markup import Column, Row, details, joined, name, section, stacked, table, with_range, with_unit
from ragalign.reports.rendering import colour
from ragalign.reports.report import Comparison
from ragalign.statistics import Estimate

_FEWEST_AXES, _MOST_AXES = 3, 10
_MOST_IN_RADAR = 6
_HISTOGRAM = Markup('<figure class="{}"><figcaption>{}<span class="n">n = {}</span></figcaption>{}</figure>')
_MISSING = Estimate(math.nan, math.nan, math.nan, 0, 0, "")


def aspects(comparison: Comparison) -> Markup:
    """Every aspect of every model."""
    found = [metric for metric in comparison.metrics if metric.is_aspect]
    if len(found) < 2:
        return Markup()
    series = {model.name: [model.means[metric.name] for metric in found] for model in comparison.models}
    return section("By aspect", "", _axes([metric.label for metric in found], series, comparison, found[0].unit))


def categories(comparison: Comparison) -> Markup:
    """The headline by kind of prompt."""
    kinds = list(dict.fromkeys(kind for model in comparison.models for kind in model.categories))
    if not kinds:
        return Markup()
    series = {model.name: [model.categories.get(kind, _MISSING) for kind in kinds] for model in comparison.models}
    metric = comparison.metrics[0]
    note = f"{with_unit(metric.label, metric.unit)}, by kind of prompt."
    return section("By category", note, _axes(kinds, series, comparison, metric.unit))


def distributions(comparison: Comparison) -> Markup:
    """Histograms of scores and lengths, one small chart per model."""
    blocks = []
    for distribution in comparison.distributions:
        charts = joined(
            _HISTOGRAM.format(
                colour(place),
                name(place, model.name),
                count(sum(distribution.counts[model.name])),
                histogram(distribution, model.name),
            )
            for place, model in enumerate(comparison.models)
        )
        label = with_unit(distribution.label, distribution.unit)
        blocks.append((distribution.name, Markup('<h4>{}</h4><div class="multiples">{}</div>').format(label, charts)))
    if not blocks:
        return Markup()
    shown = [html for place, (key, html) in enumerate(blocks) if place == 0 or key.startswith("n_")]
    more = [html for place, (key, html) in enumerate(blocks) if place > 0 and not key.startswith("n_")]
    body = joined([*shown, *([details("More scores", joined(more))] if more else [])])
    return section("Scores and lengths", "Shares of answers, on the same scale for all models.", body)


def unscored(comparison: Comparison) -> Markup:
    """Why answers have no score."""
    rows = [
        Row(name(place, model.name), [reason, count(n)])
        for place, model in enumerate(comparison.models)
        for reason, n in model.reasons.items()
    ]
    columns = [Column("model", kind="text"), Column("reason", kind="text"), Column("answers")]
    return section("Unscored answers", "Excluded from every figure.", table(columns, rows)) if rows else Markup()


def own_figures(comparison: Comparison) -> Markup:
    """The figures that the upstream tool reports, under its names."""
    names = list(dict.fromkeys(key for model in comparison.models for key in _flat(model)))
    rows = [Row(key, [_own_figure(model, key) for model in comparison.models]) for key in names]
    notes = dict.fromkeys(note for model in comparison.models for note in model.figures.notes)
    body = table(_model_columns(comparison), rows) + joined(
        Markup('<p class="note">{}</p>').format(note) for note in notes
    )
    shown = details(f"Figures of {comparison.protocol} under its own names", body)
    return Markup('<section class="card">{}</section>').format(shown)


def _axes(names: Sequence[str], series: Mapping[str, list[Estimate]], comparison: Comparison, unit: str) -> Markup:
    """A table with all figures, and a radar chart where it is readable."""
    rows = [
        Row(label, [stacked(series[model.name][place], unit) for model in comparison.models])
        for place, label in enumerate(names)
    ]
    figures = table(_model_columns(comparison), rows)
    values = [
        estimate.value for estimates in series.values() for estimate in estimates if math.isfinite(estimate.value)
    ]
    if not (values and _FEWEST_AXES <= len(names) <= _MOST_AXES and len(series) <= _MOST_IN_RADAR):
        return figures
    ends = scale_of(comparison.protocol) if unit == "points" else (0.0, min(100.0, 20 * math.ceil(max(values) / 20)))
    if ends is None:
        axis = Axis.around([estimate for estimates in series.values() for estimate in estimates])
        ends = (axis.low, axis.high)
    return Markup('<div class="split">{}<div>{}</div></div>').format(radar(names, series, *ends, unit), figures)


def _model_columns(comparison: Comparison) -> list[Column]:
    return [
        Column("", kind="text"),
        *(Column(model.name, name(place, model.name)) for place, model in enumerate(comparison.models)),
    ]


def _own_figure(model: Summary, key: str) -> str:
    value, estimate = _flat(model).get(key), model.intervals.get(key)
    text = f"{value:,.3f}" if isinstance(value, float) else "–" if value is None else str(value)
    if estimate is None or math.isnan(estimate.low):
        return text
    return with_range(text, f"{estimate.low:,.2f} to {estimate.high:,.2f}")


def _flat(model: Summary) -> dict[str, object]:
    flat: dict[str, object] = {"n": model.figures.n, "n_unscored": model.figures.n_unscored}
    for key, value in model.figures.values.items():
        flat |= (
            {f"{key}.{part}": inner for part, inner in value.items()} if isinstance(value, Mapping) else {key: value}
        )
    return flat
