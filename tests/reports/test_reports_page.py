"""The page as text: self-contained, safely embedded, complete without its script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fixtures.judged_data import ATTACKS, MODELS, verdict_row, write_lines, write_run
from hypothesis import given
from hypothesis import strategies as st

from ragalign.reports.browser import browser_data
from ragalign.reports.formats import interval, number, p_value, signed
from ragalign.reports.page import render_page, write_page
from ragalign.reports.rendering import embed
from ragalign.reports.report import Report
from ragalign.statistics import mean

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
_TAGS = (
    "a article body button circle details div figcaption figure form g h1 h2 h3 h4 head header html i input "
    "kbd label li line link main meta nav noscript option p polygon rect script section select span style "
    "summary svg table tbody td text th thead title tr ul"
)
OURS = set(_TAGS.split())


class Outline(HTMLParser):
    """What a browser would see of tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.lasttag == "script" and self.cdata_elem else self.text).append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    verdicts, completions = write_run(tmp_path_factory.mktemp("hostile"))
    return Report.from_files([verdicts], completions=completions, title=f"Title {ATTACKS[0]} {ATTACKS[6]}")


@pytest.fixture(scope="module")
def page(hostile: Report) -> str:
    return render_page(hostile, created=NOW)


def test_no_text_becomes_markup(page: str) -> None:
    outline = Outline(page)
    assert {tag for tag, _ in outline.tags} <= OURS
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert [attributes.get("type") for tag, attributes in outline.tags if tag == "script"] == ["application/json", None]
    assert [tag for tag, _ in outline.tags].count("style") == 1
    shown = " ".join(outline.text)
    for attack in (ATTACKS[0], ATTACKS[1], ATTACKS[3], ATTACKS[4]):
        assert attack in shown


def test_the_page_asks_for_nothing_from_elsewhere(page: str) -> None:
    for tag, attributes in Outline(page).tags:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or (tag == "link" and target == "data:,")
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_admits_only_the_pages_own_script(page: str) -> None:
    policy = next(a["content"] for tag, a in Outline(page).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["base-uri"], rules["form-action"]) == ("'none'", "'none'", "'none'")


def embedded(page: str) -> dict[str, Any]:
    start = page.index('id="data">') + len('id="data">')
    data: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return data


def test_the_embedded_data_are_the_reports(page: str, hostile: Report) -> None:
    data = embedded(page)
    assert data == json.loads(json.dumps(browser_data(hostile)))
    assert len(data["rows"]) == sum(len(line.judged) for line in hostile.comparisons[0].verdicts.values())
    assert len(data["texts"]) == len(set(data["texts"]))
    row = next(row for row in data["rows"] if row["id"] == "q3" and data["models"][row["m"]]["name"] == MODELS[0])
    assert data["texts"][row["q"][0]].startswith("Question 3")
    assert [data["texts"][order["w"]] for order in row["j"]] == [f"said 3 {ATTACKS[3]}"] * 2


@given(st.recursive(st.text(st.characters()), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedding_is_exact_and_cannot_be_left(value: Any) -> None:
    text = embed(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    text.encode("utf-8")


def test_figures_are_in_the_page_without_its_script(page: str, hostile: Report) -> None:
    text = " ".join(Outline(page).text)
    for model in hostile.comparisons[0].models:
        estimate = model.means["preference"]
        assert number(estimate.value, "%") in text
        assert interval(estimate, "%") in text
    for section in ("Models", "Wins, ties and losses", "Differences on the same prompts", "By category"):
        assert section in text
    for section in ("Scores and lengths", "Position bias", "Strengths", "Unscored answers", "About these figures"):
        assert section in text
    assert "29 February 2024, 12:30 UTC" in text


def test_every_kind_of_report_has_a_page(tmp_path: Path) -> None:
    general, safe = {"mode": "score_multi"}, {"mode": "score_safety"}
    kinds: dict[str, list[dict[str, Any]]] = {
        "nothing scored": [verdict_row(item_id="1", baseline="b", reason="no label")],
        "one answer": [verdict_row(item_id="1", baseline="b", preference=1.0, swapped=False)],
        "single scores": [verdict_row(item_id="1", protocol="mt-bench", scores={"score": 9.2})],
        "half unscored": [
            verdict_row(item_id="1", model="mute", protocol="just-eval", reason="refused", metadata=general),
            verdict_row(item_id="1", protocol="just-eval", scores={"depth": 3.0}, metadata=general),
            verdict_row(item_id="2", protocol="just-eval", scores={"safety": 3.0}, metadata=safe),
        ],
        "only wins": [verdict_row(item_id="1", model=model, baseline="b", preference=1.0) for model in ("x", "y")],
        "twelve models": [
            verdict_row(item_id=str(n), model=f"m{k}", baseline="b", preference=(n + k) % 3 / 2)
            for n in range(3)
            for k in range(12)
        ],
    }
    for name, rows in kinds.items():
        page = render_page(Report.from_files([write_lines(tmp_path / f"{name}.jsonl", rows)]), created=NOW)
        assert {tag for tag, _ in Outline(page).tags} <= OURS
        assert not re.search(r"\bnan\b|\binf\b|%nan", page[page.index("</style>") : page.index("<script")])


def test_written_pages_are_whole_or_absent(hostile: Report, page: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_page(hostile, path, created=NOW)
    assert path.read_text(encoding="utf-8") == page
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


def test_numbers_read_well() -> None:
    assert [number(12.345, "%"), number(-0.04, "%"), number(1234.4, "words"), number(4.567, "points")] == [
        "12.3",
        "0.0",
        "1,234",
        "4.57",
    ]
    assert [signed(1.0, "%"), signed(-1.0, "%"), signed(0.01, "%")] == ["+1.0", "−1.0", "0.0"]
    assert [number(float("nan"), "%"), number(None, "%"), number(float("-inf"), "points")] == ["–", "–", "−∞"]
    assert interval(mean([]), "%") == ""
    assert [p_value(0.0004), p_value(0.0421)] == ["< 0.001", "0.042"]
