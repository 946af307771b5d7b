"""The main sections of the page about one comparison: models, outcomes, differences, strengths, position."""

from __future__ import annotations

from markupsafe import Markup

from ragalign.comparisons.summary import Summary
from ragalign.reports.charts import Axis, interval_chart, outcome_bar
from ragalign.reports.formats import count, p_value
from ragalign.reports.markup import Column, Row, details, joined, name, section, stacked, table, with_unit
from ragalign.reports.report import Comparison
from ragalign.statistics import Estimate

_KEY = joined(
    Markup('<span class="key"><i class="{0}"></i>{0}</span>').format(outcome) for outcome in ("win", "tie", "lose")
)

_PAIR = Markup('<span class="pair">{}<span class="minus">minus</span>{}</span>')


def models(comparison: Comparison) -> Markup:
    """The table of models: the headline, win, tie and lose shares, lengths and counts."""
    if not comparison.metrics:
        texts = [f"{model.name}: {count(model.n_unscored)} unscored" for model in comparison.models]
        return section("Models", "No answer has a score.", joined(Markup("<p>{}</p>").format(text) for text in texts))
    headline, unit = comparison.metrics[0], comparison.metrics[0].unit
    axis = Axis.around([model.means[headline.name] for model in comparison.models])
    others = [metric for metric in comparison.metrics[1:] if not metric.is_aspect]
    has_shares = any(headline.name in model.outcomes for model in comparison.models)
    lengths = {"n_words": "words", "n_characters": "characters"}
    length = next((key for key in lengths if any(key in model.lengths for model in comparison.models)), None)
    columns = [Column("model", kind="text"), Column(with_unit(headline.label, unit)), _axis(axis, unit)]
    if has_shares:
        columns.append(Column(with_unit("win share", "%")))
    columns += [Column(with_unit(metric.label, metric.unit)) for metric in others]
    if length:
        columns.append(Column(f"length, {lengths[length]}"))
    columns += [Column("answers"), Column("unscored"), Column("prompts")]
    rows = []
    for place, model in enumerate(comparison.models):
        cells = _with_chart(model.means[headline.name], unit, axis)
        if has_shares:
            cells.append(stacked(model.outcomes[headline.name].win.scaled(100), "%"))
        cells += [stacked(model.means[metric.name], metric.unit) for metric in others]
        if length:
            cells.append(stacked(model.lengths.get(length), "words"))
        cells += [count(model.n), count(model.n_unscored), count(model.n_prompts)]
        rows.append(Row(name(place, model.name), cells, place))
    note = "Ties count half in the mean preference." if headline.name == "preference" else ""
    if headline.parts:
        note = f"The headline is the unweighted mean of {len(headline.parts)} aspects."
    return section("Models", note, table(columns, rows))


def outcomes(comparison: Comparison) -> Markup:
    """Bars of wins, ties and losses, overall or by aspect."""
    names = list(dict.fromkeys(outcome for model in comparison.models for outcome in model.outcomes))
    columns = [
        Column("model", kind="text"),
        Column("win, tie, lose", _KEY, "chart"),
        Column(with_unit("win", "%")),
        Column(with_unit("tie", "%")),
        Column(with_unit("lose", "%")),
        Column(with_unit("win minus lose", "%")),
        Column("n"),
    ]
    labels = {metric.name: metric.label for metric in comparison.metrics}
    blocks = []
    for outcome in names:
        rows = []
        for place, model in enumerate(comparison.models):
            shares = model.outcomes[outcome]
            cells: list[str] = [outcome_bar(shares)]
            cells += [stacked(part.scaled(100), "%") for part in (shares.win, shares.tie, shares.lose)]
            cells += [stacked(shares.net.scaled(100), "%"), count(shares.win.n)]
            rows.append(Row(name(place, model.name), cells, place))
        blocks.append(_headed(labels[outcome] if len(names) > 1 else "", table(columns, rows)))
    if not blocks:
        return Markup()
    return section("Wins, ties and losses", "In percent of scored answers, seen from the model.", joined(blocks))


def differences(comparison: Comparison) -> Markup:
    """Every pair of models on the same prompts."""
    places = {model.name: place for place, model in enumerate(comparison.models)}
    blocks = []
    for metric in comparison.metrics:
        members = [difference for difference in comparison.differences if difference.metric == metric.name]
        if not members:
            continue
        unit = metric.unit
        axis = Axis.around([difference.estimate for difference in members], include=(0.0,))
        columns = [
            Column("models", kind="text"),
            Column("difference, points"),
            _axis(axis, unit),
            Column("p (Holm)"),
            Column("prompts"),
        ]
        rows = []
        for difference in members:
            first, second = (name(places[model], model) for model in (difference.first, difference.second))
            cells = [*_with_chart(difference.estimate, unit, axis, zero=0.0, sign=True), p_value(difference.p_adjusted)]
            cells.append(count(difference.n_prompts))
            rows.append(Row(_PAIR.format(first, second), cells))
        blocks.append(_headed(metric.label, table(columns, rows)))
    if not blocks:
        return Markup()
    note = (
        "On the prompts that both answered. The p-value is an exact sign test over prompts, corrected for the number "
        "of differences tested (Holm)."
    )
    more = details("By aspect", joined(blocks[1:])) if len(blocks) > 1 else ""
    return section("Differences on the same prompts", note, blocks[0] + more)


def strengths(comparison: Comparison) -> Markup:
    """Bradley-Terry strengths of all systems."""
    found = comparison.strengths
    if found is None:
        return Markup()
    places = {model.name: place for place, model in enumerate(comparison.models)}
    axis = Axis.around(list(found.strengths.values()), include=(0.0,))
    rows = [
        Row(
            name(places.get(system), system),
            [*_with_chart(strength, "points", axis, zero=0.0), count(strength.n), count(strength.n_unscored)],
            places.get(system),
        )
        for system, strength in found.strengths.items()
    ]
    columns = [Column("system", kind="text"), Column("strength, log odds"), _axis(axis, "points")]
    note = (
        f"Bradley-Terry with ties (Davidson 1970): the log odds of winning against {found.reference}, fitted to all "
        "comparisons at once."
    )
    return section("Strengths", note, table([*columns, Column("n"), Column("unscored")], rows))


def position(comparison: Comparison) -> Markup:
    """Position bias, or why it cannot be measured."""
    known = [(place, model) for place, model in enumerate(comparison.models) if model.position is not None]
    if not known:
        return _one_order(comparison)
    rates = [model.position.first_position_rate for _, model in known if model.position is not None]
    axis = Axis.around(rates, include=(50.0,))
    columns = [Column("model", kind="text"), Column("first answer preferred, %"), _axis(axis, "%")]
    columns += [Column("same outcome in both orders, %"), Column("mean preference shown first, %")]
    columns += [Column("shown second, %"), Column("n"), Column("ties")]
    rows = [Row(name(place, model.name), _position_cells(model, axis), place) for place, model in known]
    note = (
        "50 % means no bias; ties are left out. Where an answer was judged in one order only, that order was drawn at "
        "random, so whether the outcome depends on the order is not known."
    )
    return section("Position bias", note, table(columns, rows))


def _position_cells(model: Summary, axis: Axis) -> list[str]:
    position = model.position
    if position is None:
        return []
    rate = position.first_position_rate
    cells = [*_with_chart(rate, "%", axis, zero=50.0), stacked(position.consistency, "%")]
    return [
        *cells,
        stacked(position.shown_first, "%"),
        stacked(position.shown_second, "%"),
        count(rate.n),
        count(position.n_ties),
    ]


def _one_order(comparison: Comparison) -> Markup:
    orders = {
        order.swapped
        for line in comparison.verdicts.values()
        for judged_answer in line.judged
        for order in judged_answer.orders
    }
    if not orders & {True, False}:
        return Markup()
    place = "second" if orders == {False} else "first" if orders == {True} else "in one place for each model"
    text = f"The baseline was always shown {place}, so position bias cannot be measured."
    return section("Position bias", "", Markup("<p>{}</p>").format(text))


def _headed(title: str, body: Markup) -> Markup:
    """A part with a heading, if it has one."""
    return (Markup("<h4>{}</h4>").format(title) if title else Markup()) + body


def _axis(axis: Axis, unit: str) -> Column:
    return Column("chart", axis.html(unit), "chart")


def _with_chart(estimate: Estimate, unit: str, axis: Axis, zero: float | None = None, sign: bool = False) -> list[str]:
    """A figure with its interval, and both as a chart."""
    chart = interval_chart(estimate, axis, unit, zero=zero)
    # The heading with the axis is hidden on narrow screens.
    return [stacked(estimate, unit, sign=sign), Markup('{}<div class="narrow">{}</div>').format(chart, axis.html(unit))]
