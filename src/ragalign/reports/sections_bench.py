"""The page's sections about a benchmark: quality and cost, how answers ended, factors, published results."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from markupsafe import Markup

from ragalign.reports.bench_result import Bench, Factor, Measured
from ragalign.reports.charts import level_chart
from ragalign.reports.costs import RelativePrice
from ragalign.reports.formats import NONE, count, number
from ragalign.reports.markup import Column, Row, details, joined, name, section, stacked, table, with_range, with_unit
from ragalign.types import Demonstration

_MOST_SHOWN = 5


def bench_sections(
    bench: Bench, places: Mapping[str, int], demonstrations: Mapping[str, Demonstration] | None
) -> Markup:
    """All sections.

    Args:
        bench: the figures.
        places: the place of each condition among the compared models, for its colour.
        demonstrations: texts of demonstrations by id.
    """
    marked = _namer(bench, places)
    parts = (_cost(bench, marked), _factors(bench), _ends(bench, marked), _used(bench, demonstrations or {}))
    return joined([*parts, _published(bench)])


def _namer(bench: Bench, places: Mapping[str, int]) -> Callable[[Measured], tuple[str, int]]:
    own = {condition.name: place for place, condition in enumerate(bench.conditions)}

    def marked(measured: Measured) -> tuple[str, int]:
        place = places.get(measured.name, own[measured.name])
        return name(place, measured.name), place

    return marked


def _cost(bench: Bench, marked: Callable[[Measured], tuple[str, int]]) -> Markup:
    has_quality = any(condition.quality for condition in bench.conditions)
    has_first = any(condition.costs.first_token for condition in bench.conditions)
    has_rate = any(condition.costs.requests_per_s for condition in bench.conditions)
    has_price = any(condition.costs.price for condition in bench.conditions)
    has_cache = any(condition.costs.prefilled_tokens for condition in bench.conditions)
    columns = [Column("recipe", kind="text")]
    if has_quality:
        columns += [Column(with_unit(bench.label, bench.unit)), Column(f"minus {bench.baseline}")]
    columns.append(Column("prompt tokens"))
    columns += [Column("tokens prefilled")] * has_cache
    has_reuse = any(condition.costs.reused_tokens for condition in bench.conditions)
    columns += [Column("tokens reused"), Column("MB reused")] * has_reuse
    columns.append(Column("output tokens"))
    columns += [Column("first token, ms")] * has_first
    columns += [Column("requests/s")] * has_rate
    columns += [Column("price")] * has_price
    rows = []
    for condition in bench.conditions:
        costs = condition.costs
        cells: list[str] = []
        if has_quality:
            quality = condition.quality
            cells.append(stacked(quality.estimate if quality else None, bench.unit))
            cells.append(stacked(quality.difference if quality else None, bench.unit, sign=True))
        cells.append(stacked(costs.prompt_tokens, "words"))
        if has_cache:
            cells.append(stacked(costs.prefilled_tokens, "words"))
        if has_reuse:
            cells.append(stacked(costs.reused_tokens, "words"))
            cells.append(NONE if costs.reused_bytes is None else f"{costs.reused_bytes / 1e6:,.1f}")
        cells.append(stacked(costs.output_tokens, "words"))
        if has_first:
            first = costs.first_token
            cells.append(
                with_range(f"{first.median:,.1f}", f"{first.low:,.1f} to {first.high:,.1f}") if first else NONE
            )
        if has_rate:
            cells.append(rate(costs.requests_per_s))
        if has_price:
            cells.append(with_range(price(costs.price), price_spread(costs.price)))
        heading, place = marked(condition)
        rows.append(Row(heading, cells, place))
    note = "Means per request with 95 % intervals. Every recipe started with an empty prefix cache."
    if has_first:
        note += " Time to first token: single requests to an idle engine that keeps its cache between them; "
        note += "the median, and the 10th to 90th percentiles."
    if has_price:
        note += f" {about_prices(bench)}"
    return section("Quality and cost" if has_quality else "Cost and speed", note, table(columns, rows))


def _ends(bench: Bench, marked: Callable[[Measured], tuple[str, int]]) -> Markup:
    reasons = list(dict.fromkeys(reason for condition in bench.conditions for reason in condition.costs.ends))
    labels = {"stop": "stopped, %", "length": "cut at the limit, %"}
    columns = [Column("recipe", kind="text"), Column("answers"), Column("words")]
    columns += [Column(labels.get(reason, f"{reason}, %")) for reason in reasons]
    has_ratio = any(condition.costs.length_ratio for condition in bench.conditions)
    columns += [Column("repeated 4-grams, %"), *[Column("length over reference")] * has_ratio]
    columns += [Column("demonstrations in a prompt"), Column("distinct ones used"), Column("own text shown")]
    columns.append(Column("retrieval and packing, ms"))
    rows = []
    for condition in bench.conditions:
        costs = condition.costs
        cells = [count(costs.n), stacked(costs.words, "words")]
        cells += [number(100 * costs.ends.get(reason, 0.0), "%") for reason in reasons]
        cells += [stacked(costs.repeated, "%"), *[stacked(costs.length_ratio, "")] * has_ratio]
        cells += [number(costs.demonstrations.value, "%"), count(len(costs.used)), count(costs.n_leaked)]
        cells.append(NONE if costs.preparation_ms is None else f"{costs.preparation_ms:,.1f}")
        heading, place = marked(condition)
        rows.append(Row(heading, cells, place))
    return section(
        "Lengths and ends", "How long answers are, why they ended, and what they were shown.", table(columns, rows)
    )


def _factors(bench: Bench) -> Markup:
    blocks = [_factor(factor, bench) for factor in bench.factors]
    if not blocks:
        return Markup()
    what = with_unit(bench.label, bench.unit) if bench.label else "Tokens of a prompt"
    note = f"{what}, by the level of each factor, averaged over all other factors."
    return section("Factors", note, Markup('<div class="multiples wide">{}</div>').format(joined(blocks)))


def _factor(factor: Factor, bench: Bench) -> Markup:
    chart = level_chart(
        [level.name for level in factor.levels],
        [level.estimate for level in factor.levels],
        bench.unit,
        fallback=[level.prompt_tokens for level in factor.levels],
    )
    return Markup("<figure><figcaption><b>{}</b></figcaption>{}</figure>").format(factor.name.replace("_", " "), chart)


def _used(bench: Bench, demonstrations: Mapping[str, Demonstration]) -> Markup:
    rows = []
    for condition in bench.conditions:
        for used, n in list(condition.costs.used.items())[:_MOST_SHOWN]:
            shown = demonstrations[used].instruction if used in demonstrations else used
            text = " ".join(shown.split())
            text = text if len(text) <= 120 else f"{text[:119]}…"
            rows.append(Row(condition.name, [text, count(n), number(100 * n / condition.costs.n, "%")]))
    if not rows:
        return Markup()
    columns = [
        Column("recipe", kind="text"),
        Column("demonstration", kind="text"),
        Column("prompts"),
        Column("of all, %"),
    ]
    note = f"The {_MOST_SHOWN} most used of each recipe; the report’s JSON lists ten."
    return section("Demonstrations used", note, details("Show them", table(columns, rows)))


def _published(bench: Bench) -> Markup:
    if not bench.published:
        return Markup()
    rows = [
        Row(result.name, [result.figure, f"{number(result.value, result.unit)}{' %' if result.unit == '%' else ''}",
                               result.prompts, result.source])
        for result in bench.published
    ]  # fmt: skip
    columns = [Column("system", kind="text"), Column("figure", kind="text"), Column("published")]
    columns += [Column("prompts", kind="text"), Column("source", kind="text")]
    note = "Published by others, not measured here; prompts, judges and models can differ from this run’s."
    return section("Published results", note, table(columns, rows))


def rate(value: float | None) -> str:
    """Requests per second."""
    return NONE if value is None else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def price(value: RelativePrice | None) -> str:
    """A price relative to that of fixed demonstrations."""
    return NONE if value is None else f"{value.ratio:.2f}×"


def price_spread(value: RelativePrice | None) -> str:
    """The extremes of a price; empty without one."""
    return "" if value is None else f"{value.low:.2f} to {value.high:.2f}"


def with_spread(value: RelativePrice | None) -> str:
    """A price with its extremes, on one line."""
    return NONE if value is None else f"{price(value)} ({value.low:.2f}–{value.high:.2f})"


def about_prices(bench: Bench) -> str:
    """How prices were measured, and how far the control was off."""
    timing = bench.timing
    if timing is None:
        return Markup()
    return (
        f"Price: the engine’s seconds relative to {timing.base}; the median of {timing.n_rounds} interleaved rounds of "
        f"{timing.n_prompts} prompts, and the extremes. Control: one recipe timed twice per round costs "
        f"{price(timing.control)} itself ({price_spread(timing.control)})."
    )
