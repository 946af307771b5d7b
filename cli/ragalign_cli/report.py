"""`ragalign report`: turn judgements into figures with intervals, tables and an HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragalign_cli import console
from ragalign_cli.figures import nothing_scored, tell_problems
from ragalign_cli.paths import out_file

if TYPE_CHECKING:
    from ragalign.reports.report import Comparison, Report
    from ragalign.statistics import Estimate

_COLUMN_WIDTH = 24


def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Output of `ragalign judge run` (verdicts.jsonl or its folder), or upstream judgement files.",
            show_default=False,
        ),
    ],
    protocol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The protocol of upstream files, if it cannot be detected."),
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Answer file of `ragalign generate` or any upstream tool, also the baseline's, to show texts and "
            "retrieved demonstrations. Repeatable.",
            show_default=False,
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The index of the demonstrations, to show their texts."),
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="MT-Bench's question file, for texts and averages by category."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write the report as an HTML page.", callback=out_file)
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as one JSON document.")] = False,
) -> None:
    """Report judgements: figures with intervals, differences between models, position bias.

    Models with the same protocol, baseline and judge share a table. The page works offline and without other files; it
    also lists the answers, searchable, with their questions, demonstrations and the judge's replies.

    \b
    Examples:
      ragalign report judged --answers ica.jsonl --answers baseline.jsonl \\
          --index indexes/lima --out report.html
      ragalign report OpenHermes/annotations.json Qwen/annotations.json \\
          --out report.html
      ragalign report gpt-4_single.jsonl --queries question.jsonl --json
      ragalign report a_autoeval.jsonl b_autoeval.jsonl --protocol ica \\
          --title "Retrieved against random"
    """
    from ragalign.reports.report import Report

    result = Report.from_files(
        files, protocol=protocol, completions=answers or (), questions=queries, index=index, title=title
    )
    tell_problems(result.problems)
    for note in result.notes:
        console.note(note)
    if json:
        console.print_json(result.to_dict())
    else:
        for comparison in result.comparisons:
            _show(comparison)
    if out is not None:
        write_report(result, out)
    models = [model for comparison in result.comparisons for model in comparison.models]
    if not any(model.n for model in models):
        reasons: Counter[str] = Counter()
        for model in models:
            reasons.update(model.reasons)
        console.error(nothing_scored(reasons))
        raise typer.Exit(console.EXIT_FAILURE)


def write_report(result: Report, out: Path, browse: int | None = None) -> None:
    """Write the page, and note its path and size."""
    from datetime import UTC, datetime

    from ragalign.reports.page import write_page

    write_page(result, out, created=datetime.now(UTC), browse=browse)
    console.note(f"-> {out} ({out.stat().st_size / 1e6:.1f} MB)")


def _show(comparison: Comparison) -> None:
    against = f" against {comparison.baseline}" if comparison.baseline else ""
    judge = f", judged by {comparison.judge}" if comparison.judge else ""
    console.heading(f"{comparison.protocol}{against}{judge}")
    _show_by_model(comparison, _figures(comparison))
    if categories := _categories(comparison):
        console.heading(f"{comparison.metrics[0].label} by category")
        _show_by_model(comparison, categories)
    if comparison.differences:
        console.heading("Differences on the same prompts")
        _show_differences(comparison)
    if any(model.position for model in comparison.models):
        console.heading("Position bias")
        _show_by_model(comparison, _position(comparison))
    for model in comparison.models:
        for reason, count in model.reasons.items():
            console.note(f"{model.name}: {count} unscored: {reason}")
    for note in dict.fromkeys(note for model in comparison.models for note in model.figures.notes):
        console.note(note)


def _show_by_model(comparison: Comparison, rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print figures as rows and models as columns, in several tables if the terminal is narrow."""
    label_width = max(len(label) for label, _ in rows)
    at_once = max(1, (console.stdout().width - label_width) // (_COLUMN_WIDTH + 2))
    for start in range(0, len(comparison.models), at_once):
        part = comparison.models[start : start + at_once]
        columns = [("", "left"), *((_short(model.name, _COLUMN_WIDTH), "right") for model in part)]
        console.print_table(columns, [[label, *cells[start : start + at_once]] for label, cells in rows])


def _figures(comparison: Comparison) -> list[tuple[str, list[str]]]:
    from ragalign.reports.formats import count

    models = comparison.models
    rows = [
        ("answers", [count(model.n) for model in models]),
        ("unscored", [count(model.n_unscored) for model in models]),
        ("prompts", [count(model.n_prompts) for model in models]),
    ]
    for metric in comparison.metrics:
        label = f"{metric.label}, %" if metric.unit == "%" else metric.label
        rows.append((label, [_with_interval(model.means[metric.name], metric.unit) for model in models]))
    names = dict.fromkeys(name for model in models for name in model.outcomes)
    for name in names:
        about = f"{name}: " if len(names) > 1 else ""
        for outcome in ("win", "tie", "lose"):
            shares = [getattr(model.outcomes[name], outcome).scaled(100) for model in models]
            rows.append((f"{about}{outcome}, %", [_with_interval(share, "%") for share in shares]))
    for name, unit in (("n_words", "words"), ("n_characters", "characters")):
        if any(name in model.lengths for model in models):
            rows.append((f"length, {unit}", [_with_interval(model.lengths.get(name), unit) for model in models]))
            break
    return rows


def _categories(comparison: Comparison) -> list[tuple[str, list[str]]]:
    kinds = dict.fromkeys(kind for model in comparison.models for kind in model.categories)
    unit = comparison.metrics[0].unit if comparison.metrics else ""
    return [(kind, [_with_interval(model.categories.get(kind), unit) for model in comparison.models]) for kind in kinds]


def _position(comparison: Comparison) -> list[tuple[str, list[str]]]:
    figures = (
        ("first answer preferred, %", "first_position_rate"),
        ("same in both orders, %", "consistency"),
        ("preference shown first, %", "shown_first"),
        ("preference shown second, %", "shown_second"),
    )
    return [
        (
            label,
            [
                _with_interval(getattr(model.position, name) if model.position else None, "%")
                for model in comparison.models
            ],
        )
        for label, name in figures
    ]


def _show_differences(comparison: Comparison) -> None:
    from ragalign.reports.formats import count, interval, p_value, signed

    columns = [("models", "left"), ("metric", "left"), ("difference", "right"), ("95 % interval", "right")]
    columns += [("p (Holm)", "right"), ("prompts", "right")]
    rows = [
        [
            f"{_short(difference.first, 30)} minus {_short(difference.second, 30)}",
            difference.label,
            signed(difference.estimate.value, difference.unit),
            interval(difference.estimate, difference.unit),
            p_value(difference.p_adjusted),
            count(difference.n_prompts),
        ]
        for difference in comparison.differences
    ]
    console.print_table(columns, rows)


def _with_interval(estimate: Estimate | None, unit: str) -> str:
    from ragalign.reports.formats import interval, number

    if estimate is None:
        return number(None, unit)
    ends = interval(estimate, unit)
    return number(estimate.value, unit) + (f" ({ends})" if ends else "")


def _short(name: str, width: int) -> str:
    return console.shortened(name, width)
