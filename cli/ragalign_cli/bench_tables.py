"""Tables of a benchmark's figures for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ragalign_cli import console

if TYPE_CHECKING:
    from ragalign.bench.expected import Expectation
    from ragalign.reports.bench_result import Bench, Factor, MetricName
    from ragalign.reports.costs import Costs


def show(bench: Bench) -> None:
    """Print the figures: quality, cost, and the factors of a sweep."""
    if bench.label:
        show_quality(bench)
    show_costs(bench)
    show_shape(bench)
    for factor in bench.factors:
        _show_factor(factor, bench)
    if bench.published:
        _show_published(bench)


def show_quality(bench: Bench) -> None:
    """Print each metric by recipe, with the difference from the baseline on the same prompts; * marks the best."""
    for metric in bench.metrics:
        _show_metric(bench, metric)


def _show_metric(bench: Bench, metric: MetricName) -> None:
    from ragalign.reports.formats import interval, number, p_value, signed
    from ragalign.reports.markup import with_unit

    unit = metric.unit
    console.heading(with_unit(metric.label, unit))
    columns = [("recipe", "left"), (metric.label.partition(" (")[0].lower(), "right"), ("95 % interval", "right")]
    columns += [(f"minus {bench.baseline}", "right"), ("paired 95 % interval", "right"), ("p", "right")]
    rows = []
    best = bench.best_by(metric)
    for condition in bench.conditions:
        quality = condition.by(metric.name)
        estimate, difference = (quality.estimate, quality.difference) if quality else (None, None)
        mark = " *" if condition.name == best else ""
        row = [f"{condition.name}{mark}", number(estimate.value if estimate else None, unit)]
        row.append(interval(estimate, unit) if estimate else "")
        row += [signed(difference.value, unit), interval(difference, unit)] if difference else ["", ""]
        rows.append([*row, p_value(quality.test.p_value) if quality and quality.test else ""])
    console.print_table(columns, rows)


def show_costs(bench: Bench) -> None:
    """Print each recipe's cost and speed per request."""
    from ragalign.reports.formats import number
    from ragalign.reports.sections_bench import about_prices, rate, with_spread

    console.heading("Cost and speed, per request")
    has_reuse = any(condition.costs.reused_tokens for condition in bench.conditions)
    reused = ("reused", "MB") if has_reuse else ()
    names = ("shown", "prompt", "prefill", *reused, "output", "TTFT", "req/s", "price")
    columns = [("recipe", "left"), *((name, "right") for name in names)]
    rows = [
        [
            condition.name,
            number(condition.costs.demonstrations.value, "%"),
            number(condition.costs.prompt_tokens.value, "words"),
            number(condition.costs.prefilled_tokens.value if condition.costs.prefilled_tokens else None, "words"),
            *(_reused(condition.costs) if has_reuse else ()),
            number(condition.costs.output_tokens.value, "%"),
            number(condition.costs.first_token.median if condition.costs.first_token else None, "%"),
            rate(condition.costs.requests_per_s),
            with_spread(condition.costs.price),
        ]
        for condition in bench.conditions
    ]
    console.print_table(columns, rows)
    note = "shown: demonstrations per prompt; prompt, prefill (computed, not cached), output: tokens"
    note += "; reused: tokens whose keys and values were reused, and their size" if has_reuse else ""
    note += "; TTFT: median time to first token on an idle engine, ms." if bench.timing else "."
    console.note(f"{note} {about_prices(bench)}".rstrip())


def _reused(costs: Costs) -> tuple[str, str]:
    from ragalign.reports.formats import number

    size = "" if costs.reused_bytes is None else f"{costs.reused_bytes / 1e6:,.1f}"
    return number(costs.reused_tokens.value if costs.reused_tokens else None, "words"), size


def show_shape(bench: Bench) -> None:
    """Print the shape of answers: whether they stop, how much they repeat themselves, and how long they are."""
    from ragalign.reports.formats import interval, number

    has_ratio = any(condition.costs.length_ratio for condition in bench.conditions)
    console.heading("Shape of the answers")
    columns = [
        ("recipe", "left"),
        ("stopped, %", "right"),
        ("", "right"),
        ("repeated 4-grams, %", "right"),
        ("", "right"),
    ]
    columns += [("words", "right"), *[("length over reference", "right"), ("", "right")] * has_ratio]
    rows = []
    for condition in bench.conditions:
        costs = condition.costs
        row = [condition.name]
        for estimate, unit in ((costs.stopped, "%"), (costs.repeated, "%")):
            row += [number(estimate.value, unit), interval(estimate, unit)]
        row.append(number(costs.words.value, "words"))
        if has_ratio:
            ratio = costs.length_ratio
            row += [number(ratio.value if ratio else None, ""), interval(ratio, "") if ratio else ""]
        rows.append(row)
    console.print_table(columns, rows)


def _show_factor(factor: Factor, bench: Bench) -> None:
    from ragalign.reports.formats import interval, number
    from ragalign.reports.markup import with_unit

    console.heading(factor.name.replace("_", " "))
    columns = [("level", "left"), ("conditions", "right"), ("prompt tokens", "right")]
    columns += [(with_unit(bench.label, bench.unit), "right"), ("95 % interval", "right")] if bench.label else []
    rows = []
    for level in factor.levels:
        row = [level.name, f"{level.n_conditions:,}", number(level.prompt_tokens, "words")]
        if level.estimate is not None:
            row += [number(level.estimate.value, bench.unit), interval(level.estimate, bench.unit)]
        rows.append(row)
    console.print_table(columns, rows)


def _show_published(bench: Bench) -> None:
    from ragalign.reports.formats import number

    console.heading("Published by others, not measured here")
    rows = [
        [result.name, result.figure, number(result.value, result.unit), result.source] for result in bench.published
    ]
    console.print_table([("system", "left"), ("figure", "left"), ("published", "right"), ("source", "left")], rows)


def show_expected(expected: Sequence[Expectation]) -> None:
    """Print what the testbed is expected to show, and whether it does."""
    if not expected:
        return
    console.heading("Expected of the testbed")
    rows = [["holds" if expectation.holds else "FAILS", expectation.name, expectation.seen] for expectation in expected]
    console.print_table([("", "left"), ("expected", "left"), ("seen", "left")], rows)
