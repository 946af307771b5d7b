"""The analysis as a self-contained HTML page: figures, plots, and answers with tokens coloured by shift."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ragalign.reports.formats import NONE, count, number
from ragalign.reports.markup import Column, Row, name, section, stacked, table
from ragalign.reports.page import save as save_page
from ragalign.reports.plots import Series, as_file, bar_plot, key, line_plot
from ragalign.reports.rendering import asset, embed, policy
from ragalign.reports.rendering import render as render_template
from ragalign.runs.machine import version
from ragalign.studies.shift.figures import ShiftFigures
from ragalign.studies.shift.record import AlignedAnswer, Place
from ragalign.studies.shift.running import ShiftOutcome, ShiftSettings

# Maximum answers on the page; more would make it slow to load.
MAX_ANSWERS = 100
_TOKENS_SHOWN = 15
_PACKAGE = "ragalign.studies.shift"
_PLOT = Markup('{}<div class="scroll">{}</div>')

FULL_KL = "KL(aligned || base) is in nats, over the whole vocabulary."
TOP_KL = (
    "KL is a lower bound of KL(aligned || base), in nats: only the {k} most probable tokens of each model are known at "
    "a position, and all other tokens share one bucket. Ranks and probabilities are exact."
)
NO_KL = "The models have different tokenizers, so their distributions cannot be compared and there is no KL."


def write_pages(
    settings: ShiftSettings,
    outcome: ShiftOutcome,
    shown: Sequence[ShiftFigures],
    folder: Path,
    *,
    created: datetime,
    max_answers: int = MAX_ANSWERS,
) -> list[Path]:
    """Write ``shift.html`` with at most `max_answers` answers, and its plots as SVG files; returns their paths."""
    names = [context_figures.context for context_figures in shown]
    page = render(settings, outcome, shown, created=created, max_answers=max_answers)
    save_page(page, folder / "shift.html")
    written = [folder / "shift.html"]
    for file, svg in (("shifted-by-position", by_position(shown)), ("ranks", ranks(shown))):
        path = folder / f"{file}.svg"
        path.write_text(as_file(svg, names), encoding="utf-8")
        written.append(path)
    return written


def render(
    settings: ShiftSettings,
    outcome: ShiftOutcome,
    shown: Sequence[ShiftFigures],
    *,
    created: datetime,
    max_answers: int = MAX_ANSWERS,
) -> str:
    """The page as text."""
    script = asset("shift.js", _PACKAGE)
    n = min(len(outcome.answers), max_answers)
    few = f"The first {count(n)} of {count(len(outcome.answers))} answers." if n < len(outcome.answers) else ""
    return render_template(
        "shift.html",
        package=_PACKAGE,
        policy=policy(script),
        title=f"Token distribution shift: {_short(settings.aligned)} against {_short(settings.base)}",
        style=asset("page.css") + asset("plots.css") + asset("shift.css", _PACKAGE),
        facts=_facts(settings, outcome, created),
        navigation=[("figures", "Figures"), ("answers", "Single answers"), ("method", "About these figures")],
        notes=_notes(outcome, shown),
        figures=_figures(shown),
        shown=few,
        kl=kl_note(settings, outcome),
        data=embed(_data(outcome, n)),
        script=script,
    )


def kl_note(settings: ShiftSettings, outcome: ShiftOutcome) -> str:
    """A note on how KL was computed in this run."""
    if not outcome.shared:
        return NO_KL
    return FULL_KL if settings.top_k is None else TOP_KL.format(k=settings.top_k)


def by_position(shown: Sequence[ShiftFigures]) -> str:
    """The plot of the share of shifted tokens by position."""
    labels = list(dict.fromkeys(shift_bin.label for figures in shown for shift_bin in figures.by_position))
    starts = sorted({shift_bin.low: shift_bin.label for figures in shown for shift_bin in figures.by_position}.items())
    places = {low: float(number) for number, (low, _) in enumerate(starts)}
    series = []
    for figures in shown:
        bins = figures.by_position
        estimates = [shift_bin.shares["shifted"].scaled(100) for shift_bin in bins]
        series.append(
            Series(
                figures.context,
                [places[shift_bin.low] for shift_bin in bins],
                [shift_bin.value for shift_bin in estimates],
                [shift_bin.low for shift_bin in estimates],
                [shift_bin.high for shift_bin in estimates],
            )
        )
    ticks = [(places[low], label) for low, label in starts] if labels else [(0.0, "")]
    return line_plot(series, x_ticks=ticks, x_label="position in the answer, tokens", y_label="shifted, %")


def ranks(shown: Sequence[ShiftFigures]) -> str:
    """The plot of the ranks of the aligned model's tokens."""
    labels = [label for label, _ in shown[0].ranks]
    series = [
        (context_figures.context, [100 * share for _, share in context_figures.ranks]) for context_figures in shown
    ]
    return bar_plot(labels, series, x_label="rank of the token for the base model", y_label="positions, %")


def _figures(shown: Sequence[ShiftFigures]) -> str:
    names = key([context_figures.context for context_figures in shown])
    plots = (
        section("Where in the answer", "", _PLOT.format(names, by_position(shown)))
        + section("How far down the base model’s list", "", _PLOT.format(names, ranks(shown)))
    )  # fmt: skip
    return (
        section("How far tokens are shifted", "", _shares(shown))
        + Markup('<div class="plots">{}</div>').format(plots)
        + section("What kinds of tokens", "Share of shifted positions among the tokens of a kind.", _categories(shown))
        + _tokens(shown[0])
    )


def _shares(shown: Sequence[ShiftFigures]) -> str:
    columns = [
        Column("context of the base model", kind="text"),
        Column("positions"),
        Column("unshifted, %"),
        Column("marginal, %"),
        Column("shifted, %"),
        Column("closed, %"),
        Column("KL, nats"),
        Column("probability, %"),
        Column("demonstrations"),
        Column("prompt tokens"),
    ]
    rows = []
    for place, context_figures in enumerate(shown):
        cells = [count(context_figures.n_positions)]
        cells += [
            stacked(context_figures.shares[kind].scaled(100), "%") for kind in ("unshifted", "marginal", "shifted")
        ]
        cells += [
            NONE if context_figures.closed is None else stacked(context_figures.closed.scaled(100), "%"),
            stacked(context_figures.kl, "nats"),
            stacked(context_figures.probability.scaled(100), "%"),
            number(context_figures.n_demonstrations, "points").rstrip("0").rstrip("."),
            number(context_figures.n_prompt_tokens, "words"),
        ]
        rows.append(Row(name(place, context_figures.context), cells, place))
    return table(columns, rows)


def _categories(shown: Sequence[ShiftFigures]) -> str:
    kinds = sorted({kind for context_figures in shown for kind in context_figures.by_category})
    columns = [
        Column("kind", kind="text"),
        Column("tokens"),
        *(Column(f"{context_figures.context}, %") for context_figures in shown),
    ]
    rows = []
    for kind in kinds:
        cells = [count(shown[0].by_category[kind].n) if kind in shown[0].by_category else NONE]
        cells += [
            stacked(context_figures.by_category[kind].scaled(100), "%") if kind in context_figures.by_category else NONE
            for context_figures in shown
        ]
        rows.append(Row(kind, cells))
    return table(columns, rows)


def _tokens(first: ShiftFigures) -> str:
    columns = [
        Column("token", kind="text"),
        Column("kind", kind="text"),
        Column("shifted"),
        Column("occurrences"),
        Column("base model’s probability, %"),
    ]
    rows = [
        Row(
            Markup('<code class="token">{}</code>').format(visible(token.text)),
            [
                token.category,
                count(token.n_shifted),
                count(token.n),
                number(100 * token.probability, "%"),
            ],
        )
        for token in first.tokens[:_TOKENS_SHOWN]
    ]
    if not rows:
        return ""
    return section(f"Most shifted tokens in the context “{first.context}”", "", table(columns, rows))


def visible(text: str) -> str:
    """A token with visible white space."""
    return text.replace("\n", "↵").replace(" ", "·").replace("\t", "⇥") or "(part of a character)"


def _facts(settings: ShiftSettings, outcome: ShiftOutcome, created: datetime) -> list[str]:
    n_tokens = sum(len(answer.token_ids) for answer in outcome.answers)
    return [
        f"aligned: {settings.aligned}",
        f"base: {settings.base}",
        f"{count(len(outcome.answers))} answers, {count(n_tokens)} tokens",
        f"made with ragalign {version('ragalign')} on {created:%d %B %Y, %H:%M} UTC",
    ]


def _notes(outcome: ShiftOutcome, shown: Sequence[ShiftFigures]) -> list[str]:
    notes = []
    for context in dict.fromkeys(context for context, _, _ in outcome.failures):
        reasons = [(id_, reason) for name_, id_, reason in outcome.failures if name_ == context]
        notes.append(
            f"{count(len(reasons))} answers could not be read in the context {context}; the first: "
            f"query {reasons[0][0]}: {reasons[0][1]}"
        )
    if not outcome.shared:
        notes.append("The models have different tokenizers: only tokens that cover the same characters are compared.")
    for context_figures in shown:
        if n_elsewhere := context_figures.n_elsewhere:
            total = n_elsewhere + context_figures.n_positions
            notes.append(
                f"{context_figures.context}: {count(n_elsewhere)} of {count(total)} tokens are not compared, since the "
                "base model splits the text differently there"
            )
    return notes


def _data(outcome: ShiftOutcome, n: int) -> dict[str, Any]:
    contexts = list(outcome.readings)
    answers = [
        {
            "q": answer.instruction,
            "t": list(answer.pieces),
            "c": list(answer.categories),
            "p": [round(value, 4) for value in answer.logprobs],
            "places": [_places(outcome, context, answer) for context in contexts],
        }
        for answer in outcome.answers[:n]
    ]
    return {"contexts": contexts, "answers": answers}


def _places(outcome: ShiftOutcome, context: str, answer: AlignedAnswer) -> list[Any] | None:
    reading = outcome.readings[context].get(answer.id)
    return None if reading is None else [_place(place) for place in reading.places]


def _place(place: Place | None) -> list[Any] | None:
    if place is None:
        return None
    best = [[text, round(value, 3)] for text, value in place.best]
    return [place.rank, round(place.logprob, 3), None if place.kl is None else round(place.kl, 3), best]


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] or model
