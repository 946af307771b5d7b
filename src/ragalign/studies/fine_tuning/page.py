"""The comparison as one self-contained HTML page, and its plot as an SVG file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from ragalign.reports.formats import NONE, count, number
from ragalign.reports.markup import Column, Row, name, section, stacked, table
from ragalign.reports.page import save as save_page
from ragalign.reports.plots import Series, as_file, key, line_plot
from ragalign.reports.rendering import asset, policy
from ragalign.reports.rendering import render as render_template
from ragalign.runs.machine import version
from ragalign.studies.fine_tuning.cells import METHODS
from ragalign.studies.fine_tuning.figures import BreakEven, CurvePoint
from ragalign.studies.fine_tuning.running import FineTuningSettings


def write_pages(
    settings: FineTuningSettings,
    found: Sequence[CurvePoint],
    pairs: Sequence[BreakEven],
    n_prompts: int,
    folder: Path,
    *,
    created: datetime,
    lower_is_better: bool = False,
) -> None:
    """Write ``compare-ift.html`` and ``quality.svg``."""
    page = render(settings, found, pairs, n_prompts, created=created, lower_is_better=lower_is_better)
    save_page(page, folder / "compare-ift.html")
    plot = quality(found, lower_is_better=lower_is_better)
    (folder / "quality.svg").write_text(as_file(plot, shown_methods(found)), encoding="utf-8")


def render(
    settings: FineTuningSettings,
    found: Sequence[CurvePoint],
    pairs: Sequence[BreakEven],
    n_prompts: int,
    *,
    created: datetime,
    lower_is_better: bool = False,
) -> str:
    """The page as text."""
    facts = [
        f"base: {settings.base}",
        f"recipe: {settings.recipe}",
        f"metric: {settings.metric}{' (lower is better)' if lower_is_better else ''}",
        f"{count(n_prompts)} prompts, {settings.seeds} seed{'s' if settings.seeds != 1 else ''}",
        f"made with ragalign {version('ragalign')} on {created:%d %B %Y, %H:%M} UTC",
    ]
    figures = (
        section(
            "Quality by number of demonstrations",
            "",
            Markup('{}<div class="scroll">{}</div>').format(
                key(shown_methods(found)), quality(found, lower_is_better=lower_is_better)
            ),
        )
        + section("All figures", "Lower scores are better." if lower_is_better else "", _table(found))
        + (section("When fine-tuning pays", "", _break_even(pairs)) if pairs else Markup())
    )
    return render_template(
        "compare_ift.html",
        package="ragalign.studies.fine_tuning",
        policy=policy(""),
        title="Demonstrations in context against fine-tuning",
        style=asset("page.css") + asset("plots.css"),
        facts=facts,
        navigation=[],
        notes=[],
        figures=figures,
    )


def shown_methods(found: Sequence[CurvePoint]) -> list[str]:
    """The methods that were run, in their order."""
    return [method for method in METHODS if any(point.method == method for point in found)]


def quality(found: Sequence[CurvePoint], *, lower_is_better: bool = False) -> str:
    """The plot of quality against the number of demonstrations; methods without one are dashed lines."""
    sizes = sorted({point.n for point in found if point.n is not None})
    places = {n: math.log(n) for n in sizes}
    ends = [min(places.values()), max(places.values())] if places else [0.0, 1.0]
    series = []
    for method in shown_methods(found):
        own = [point for point in found if point.method == method]
        estimates = [point.quality for point in own]
        if own[0].n is None:
            level = [estimates[0].value] * 2
            series.append(Series(method, ends, level, [math.nan] * 2, [math.nan] * 2, dashed=True))
        else:
            xs = [places[point.n] for point in own if point.n is not None]
            ys, lows, highs = zip(
                *((estimate.value, estimate.low, estimate.high) for estimate in estimates), strict=True
            )
            series.append(Series(method, xs, ys, lows, highs))
    ticks = [(places[n], f"{n:,}") for n in sizes] or [(0.0, "")]
    highest = max((point.quality.value for point in found if math.isfinite(point.quality.value)), default=1.0)
    return line_plot(
        series,
        x_ticks=ticks,
        x_label="demonstrations",
        y_label="mean score, lower is better" if lower_is_better else "mean score",
        y_max=1.0 if highest <= 1 else None,
    )


def _table(found: Sequence[CurvePoint]) -> str:
    columns = [
        Column("method, demonstrations", kind="text"),
        Column("score"),
        Column("seeds, lowest to highest"),
        Column("shown"),
        Column("prompt tokens"),
        Column("ms per answer"),
        Column("training, s"),
        Column("training tokens"),
        Column("steps"),
    ]
    methods = shown_methods(found)
    rows = []
    for point in found:
        spread = [value for value in point.by_seed if math.isfinite(value)]
        trained = point.training_tokens > 0
        rows.append(
            Row(
                name(methods.index(point.method), point.name),
                [
                    stacked(point.quality, "points"),
                    f"{min(spread):.2f} to {max(spread):.2f}" if len(spread) > 1 else NONE,
                    number(point.demonstrations, "points"),
                    number(point.prompt_tokens, "words"),
                    number(1000 * point.answer_s, "words"),
                    number(point.training_s, "%") if trained else NONE,
                    count(round(point.training_tokens)) if trained else NONE,
                    count(round(point.steps)) if trained else NONE,
                ],
                methods.index(point.method),
            )
        )
    return table(columns, rows)


def _break_even(pairs: Sequence[BreakEven]) -> str:
    columns = [
        Column("fine-tuned", kind="text"),
        Column("in context", kind="text"),
        Column("score, difference"),
        Column("queries, by seconds"),
        Column("queries, by tokens"),
    ]
    rows = [
        Row(
            pair.tuned.name,
            [
                pair.in_context.name,
                number(pair.tuned.quality.value - pair.in_context.quality.value, "points"),
                queries(pair.by_seconds),
                queries(pair.by_tokens),
            ],
        )
        for pair in pairs
    ]
    return table(columns, rows)


def queries(value: float) -> str:
    """A number of queries; infinitely many is never."""
    return "never" if math.isinf(value) else count(int(value))
