"""The report as one self-contained HTML page: no network, no external file, works from disk.

Texts that models, judges or files contributed reach the page in two ways only: escaped by the templates, or inside a
JSON block whose `<`, `>` and `&` are escaped and which the script shows as text. The page's content security policy
admits one script, by its hash, and no connection, should anything slip through.
"""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from markupsafe import Markup

from ragalign.comparisons.computed import COMPUTED
from ragalign.reports import sections, sections_detail
from ragalign.reports.browser import browser_data
from ragalign.reports.formats import count
from ragalign.reports.markup import joined
from ragalign.reports.rendering import asset, embed, policy, render
from ragalign.reports.report import Comparison, Report
from ragalign.reports.sections_bench import bench_sections
from ragalign.runs.machine import version

_SECTIONS = (
    sections.models,
    sections.outcomes,
    sections.differences,
    sections_detail.aspects,
    sections_detail.categories,
    sections_detail.distributions,
    sections.position,
    sections.strengths,
    sections_detail.unscored,
    sections_detail.own_figures,
)


def render_page(report: Report, *, created: datetime, browse: int | None = None) -> str:
    """The page as text.

    Args:
        report: what to show.
        created: the time that the page names.
        browse: list the single answers to the first prompts only, for a smaller page; to all of them by default.
    """
    script = asset("page.js")
    return render(
        "page.html",
        policy=policy(script),
        title=report.title,
        style=asset("page.css"),
        facts=_facts(report, created),
        navigation=_navigation(report),
        notes=_notes(report),
        bench=_bench(report),
        comparisons=joined(
            _comparison(number, heading, comparison)
            for number, (heading, comparison) in enumerate(zip(_headings(report), report.comparisons, strict=True))
        ),
        is_browsable=bool(report.comparisons),
        n_browsed=None if browse is None else count(browse),
        data=embed(browser_data(report, browse)),
        script=script,
    )


def write_page(report: Report, path: str | Path, *, created: datetime, browse: int | None = None) -> None:
    """Write the page, as `render_page`; the file is complete or not there at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    save(render_page(report, created=created, browse=browse), path)


def save(page: str, path: str | Path) -> None:
    """Write a page's text; the file is complete or not there at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        # Lone surrogates in a file's texts have no UTF-8 form.
        temporary.write_text(page, encoding="utf-8", errors="replace")
        temporary.replace(path)


def _facts(report: Report, created: datetime) -> list[str]:
    if report.bench is not None:
        facts = [f"{key}: {value}" for key, value in report.bench.facts.items()]
        facts.append(f"{count(len(report.bench.conditions))} recipes, {count(report.n)} scored answers")
        facts.append(f"made with ragalign {version('ragalign')} on {created:%d %B %Y, %H:%M} UTC")
        return facts
    names = {(model.figures.model, model.name) for comparison in report.comparisons for model in comparison.models}
    return [
        f"{count(len(names))} model{'s' if len(names) != 1 else ''}",
        f"{count(report.n)} judged answers",
        f"{count(report.n_unscored)} unscored",
        f"made with ragalign {version('ragalign')} on {created:%d %B %Y, %H:%M} UTC",
    ]


def _navigation(report: Report) -> list[tuple[str, str]]:
    headings = _headings(report) if len(report.comparisons) > 1 else ["Figures"]
    links = [("bench", "Recipes")] if report.bench is not None else []
    links += [(f"c{number}", heading) for number, heading in enumerate(headings[: len(report.comparisons)])]
    links += [("browse", "Single answers")] if report.comparisons else []
    return [*links, ("method", "About these figures")]


def _headings(report: Report) -> list[str]:
    """Headings that tell comparisons apart: the protocol, the baseline, and the judge where these are the same."""
    names = ["Quality" if comparison.protocol == COMPUTED else comparison.protocol for comparison in report.comparisons]
    headings = [
        f"{name} against {comparison.baseline}" if comparison.baseline else name
        for name, comparison in zip(names, report.comparisons, strict=True)
    ]
    return [
        f"{heading}, judged by {comparison.judge or 'an unnamed judge'}" if headings.count(heading) > 1 else heading
        for heading, comparison in zip(headings, report.comparisons, strict=True)
    ]


def _notes(report: Report) -> list[str]:
    notes = list(report.notes)
    if report.problems:
        first = report.problems[0]
        notes.append(
            f"{count(len(report.problems))} rows could not be read and count as unscored; the first: "
            f"{first.where}: {first.reason}"
        )
    return notes


def _bench(report: Report) -> str:
    if report.bench is None:
        return ""
    first = report.comparisons[0] if report.comparisons else None
    places = {model.name: place for place, model in enumerate(first.models)} if first else {}
    body = bench_sections(report.bench, places, report.demonstrations)
    return Markup('<section class="comparison" id="bench"><h2>Recipes</h2>{}</section>').format(body)


def _comparison(number: int, heading: str, comparison: Comparison) -> str:
    judge = f"Judged by {comparison.judge}." if comparison.judge else "The judge is not recorded."
    if comparison.protocol == COMPUTED:
        judge = "Computed from the answers, without a judge."
    body = joined(part(comparison) for part in _SECTIONS)
    return Markup(
        '<section class="comparison" id="c{}"><h2>{}</h2>'
        '<p class="lead">{} Intervals are at 95\N{NO-BREAK SPACE}%.</p>{}</section>'
    ).format(number, heading, judge, body)
