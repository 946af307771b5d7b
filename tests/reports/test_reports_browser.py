"""The page in a real browser: quick, searchable, at home on phones and in the dark, and deaf to what texts ask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fixtures.judged_data import ATTACKS, MODELS, completion_rows, pairwise_rows, write_lines, write_run
from fixtures.report_page import LAPTOP, PHONE, ROWS, Page

from ragalign.indexes import Index
from ragalign.reports.page import write_page
from ragalign.reports.report import Report

NOW = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, starter_index: Path) -> Path:
    folder = tmp_path_factory.mktemp("page")
    verdicts, completions = write_run(folder)
    used = [*Index.open(starter_index).pool.ids[:2], ATTACKS[1]]
    write_lines(completions[0], completion_rows(MODELS[0], demonstrations=used))
    report = Report.from_files([verdicts], completions=completions, index=starter_index, title=f"Runs {ATTACKS[0]}")
    write_page(report, folder / "report.html", created=NOW)
    return folder / "report.html"


@pytest.fixture
def page(chromium: Any, hostile: Path) -> Iterator[Page]:
    shown = Page(chromium, hostile)
    yield shown
    assert shown.complaints() == []


def test_nothing_is_asked_of_the_network_and_nothing_complains(chromium: Any, hostile: Path) -> None:
    page = Page(chromium, hostile)
    page.search("answers")
    assert page.complaints() == []
    assert [url for url in page.requests() if not url.startswith(("file://", "data:"))] == []


def test_attacks_in_every_field_stay_text(page: Page) -> None:
    for words in ("", "pwned", "question 3", "iframe", "onload"):
        page.search(words)
        for number in range(len(page.rows)):
            page.driver.execute_script(f"document.querySelectorAll('{ROWS}')[arguments[0]].click()", number)
            for details in page.select("#detail details"):
                page.driver.execute_script("arguments[0].open = true", details)
    assert page("window.pwned") is None
    assert page("document.querySelectorAll('script').length") == 2
    for tag in ("img", "iframe", "#detail svg", "b", "[onload]", "[onerror]", "[onmouseover]"):
        assert page("document.querySelectorAll(arguments[0]).length", tag) == 0
    page.search("question 0:")
    assert ATTACKS[0] in page.detail
    assert ATTACKS[2] in page.detail
    assert page.one("h1").text == f"Runs {ATTACKS[0]}"


def test_even_markup_that_got_in_could_not_run_or_load(chromium: Any, hostile: Path) -> None:
    page = Page(chromium, hostile)
    page.driver.execute_async_script(
        "const done = arguments[0]; document.body.insertAdjacentHTML('beforeend', "
        "\"<img src='https://example.org/x.png' onerror='window.pwned = 1'><iframe srcdoc='<script>parent.pwned = 2"
        "</scr\" + \"ipt>'></iframe>\"); const script = document.createElement('script'); script.textContent = "
        "'window.pwned = 3'; document.body.append(script); "
        "fetch('https://example.org/').catch(() => setTimeout(done, 300));"
    )
    assert page("window.pwned") is None
    assert all("Content Security Policy" in complaint for complaint in page.complaints())
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    assert not [
        event for event in events if event["method"] == "Network.responseReceived" and "example.org" in str(event)
    ]


def test_search_finds_queries_answers_and_the_judges_words(page: Page) -> None:
    assert page.total == 180
    page.search("Question 41:")
    assert page.total == 3
    page.search("random ANSWERS 41")
    assert page.total == 1
    page.search("said 17")
    assert page.total == 3
    page.search("said 17 retrieved")
    assert page.total == 1
    assert page.select("#detail mark")
    page.search("nothing has this")
    assert page.total == 0
    assert "No answer fits" in page.one("#rows tbody").text
    page.search("(.*)[")
    assert page.total == 0


def test_filters_narrow_the_list(page: Page) -> None:
    data = json.loads(page("document.getElementById('data').textContent"))
    page.choose("model", MODELS[1])
    assert page.total == 60
    page.choose("verdict", "unscored")
    assert page.total == 3
    assert all("unscored" in row for row in page.rows)
    page.choose("model", "all")
    for verdict in ("win", "tie", "lose"):
        page.choose("verdict", verdict)
        assert page.total == sum(row["o"] == verdict for row in data["rows"])
    page.choose("verdict", "all")
    page.choose("category", ATTACKS[0])
    assert page.total == 60


def test_sorting_and_paging(page: Page) -> None:
    data = json.loads(page("document.getElementById('data').textContent"))
    words = sorted((row["w"] for row in data["rows"]), reverse=True)
    length = "#rows th.c-length button"

    def lengths() -> list[int]:
        return page(f"[...document.querySelectorAll('{ROWS} .c-length')].map((cell) => Number(cell.textContent))")  # type: ignore[no-any-return]

    before = page.rows
    page.click(length)
    assert lengths() == words[:20]
    assert page("document.querySelector('th.c-length').getAttribute('aria-sort')") == "descending"
    page.click("#next")
    assert lengths() == words[20:40]
    page.click(length)
    assert lengths() == words[::-1][:20]
    page.click(length)
    assert page.rows == before
    page.choose("size", "50")
    assert len(page.rows) == 50
    page.choose("size", "100")
    page.click("#next")
    assert page.one("#place").text == "101–180 of 180"
    assert page("document.getElementById('next').disabled") is True


def test_the_keyboard_is_enough(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.driver.execute_script("document.body.focus()")
    page.keys("/")
    assert page("document.activeElement.id") == "search"
    page.keys(Keys.ESCAPE)
    assert page("document.activeElement.id") == "rows"
    chosen = "document.querySelector('tr[aria-selected=true]')?.rowIndex"
    assert page(chosen) == 1
    page.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page(chosen) == 3
    page.keys(Keys.ARROW_UP)
    assert page(chosen) == 2
    page.keys(Keys.ARROW_RIGHT)
    assert page.one("#place").text == "21–40 of 180"
    page.keys(Keys.ARROW_LEFT)
    assert page.one("#place").text == "1–20 of 180"
    # The chosen answer's page is turned to where the keys lead.
    for _ in range(19):
        page.keys(Keys.ARROW_DOWN)
    assert page.one("#place").text == "21–40 of 180"


def test_an_answer_is_shown_with_all_that_belongs_to_it(page: Page, starter_index: Path) -> None:
    page.search("retrieved answers 41")
    page.click(ROWS)
    rows = {row["id"]: row for row in completion_rows(MODELS[0])}
    assert rows["q41"]["instruction"] in page.detail
    assert rows["q41"]["response"] in page.detail
    assert f"{completion_rows(f'baseline {ATTACKS[2]}')[41]['response']}" in page.detail
    assert page.detail.count(f"said 41 {ATTACKS[1]}") == 2
    assert "the baseline was shown first" in page.detail
    assert "prompt of 1,041 tokens" in page.detail
    demonstration = Index.open(starter_index).pool[0]
    assert demonstration.instruction in page.detail
    assert demonstration.response in page.detail
    others = page.select("#detail .others button")
    assert len(others) == 3
    page.driver.execute_script("arguments[0].click()", others[1])
    assert "random answers 41" in page.detail


CONTRAST = """(() => {
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => colour.slice(0, 3).map((v) => linear(v / 255))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = (element) => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const worst = {};
  const texts = "h1, h2, h3, p, td, th, a, .ends, .badge, .who, .bar span, pre, button, summary, .n";
  for (const element of document.querySelectorAll(texts)) {
    if (!element.offsetParent || !element.textContent.trim() || element.disabled) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    const key = `${element.tagName}.${element.className}`;
    worst[key] = Math.min(worst[key] ?? 99, (a + 0.05) / (b + 0.05));
  }
  return worst;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(chromium: Any, hostile: Path, scheme: str) -> None:
    page = Page(chromium, hostile, scheme=scheme)
    red, green, blue = map(int, re.findall(r"\d+", page("getComputedStyle(document.body).backgroundColor")))
    assert (red + green + blue < 150) == (scheme == "dark")
    contrasts = page(CONTRAST)
    assert len(contrasts) > 10
    weak = {name: round(ratio, 2) for name, ratio in contrasts.items() if ratio < 4.5}
    assert weak == {}


@pytest.mark.parametrize("size", [LAPTOP, (768, 1024), PHONE, (320, 640)])
def test_no_width_makes_the_page_scroll_sideways(chromium: Any, hostile: Path, size: tuple[int, int]) -> None:
    page = Page(chromium, hostile, size=size)
    assert page("document.documentElement.scrollWidth") <= size[0]
    for summary in page.select("main details"):
        page.driver.execute_script("arguments[0].open = true", summary)
    assert page("document.documentElement.scrollWidth") <= size[0]


def test_on_a_phone_an_answer_opens_over_the_list(chromium: Any, hostile: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(chromium, hostile, size=PHONE)
    detail = page.one("#detail")
    assert not detail.is_displayed()
    page.click(ROWS)
    assert detail.is_displayed()
    assert detail.rect["width"] == PHONE[0]
    assert page("document.activeElement.id") == "detail"
    page.click("#detail .close")
    assert not detail.is_displayed()
    page.keys(Keys.ENTER)
    assert detail.is_displayed()
    page.keys(Keys.ESCAPE)
    assert not detail.is_displayed()
    assert page.complaints() == []


def test_without_a_script_the_figures_are_there(start_chromium: Callable[[], Any], hostile: Path) -> None:
    driver = start_chromium()
    try:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        driver.get(hostile.as_uri())
        text = driver.find_element("css selector", "main").text
        assert "Wins, ties and losses" in text
        assert "needs JavaScript" in text
    finally:
        driver.quit()


def test_thousands_of_real_answers_stay_quick(chromium: Any, shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "alpaca_eval/v2").glob("*/annotations.json"))
    write_page(Report.from_files(files), tmp_path / "report.html", created=NOW)
    page = Page(chromium, tmp_path / "report.html")
    assert page.total == 3220
    assert len(page.rows) == 20
    # Milliseconds on two busy cores; they are about ten times less on an idle one.
    assert page("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") < 10_000
    timed = """(() => { const start = performance.now(); document.querySelector(arguments[0]).click();
      return performance.now() - start; })()"""
    assert page(f"(function () {{ return {timed}; }}).apply(null, arguments)", "#rows th.c-prompt button") < 1000
    assert page(f"(function () {{ return {timed}; }}).apply(null, arguments)", "#next") < 300
    rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
    page.search("broadway")
    expected = sum(
        any("broadway" in row[key].lower() for key in ("instruction", "output_1", "output_2")) for row in rows
    )
    assert page.total == expected
    page.search("")
    page.choose("category", "koala")
    assert page.total == sum(row["dataset"] == "koala" for row in rows)
    assert page.complaints() == []


def test_every_protocol_renders_without_complaint(chromium: Any, shared_data: Path, tmp_path: Path) -> None:
    reports = {
        "ica": Report.from_files(sorted((shared_data / "ica").glob("*_autoeval.jsonl"))),
        "mt-bench": Report.from_files(
            [shared_data / "mt_bench/judgment_gpt-4_single_medusa.jsonl"],
            questions=shared_data / "mt_bench/question.jsonl",
        ),
        "just-eval": Report.from_files(sorted((shared_data / "just_eval/gpt-3.5-turbo-0301").glob("*.json"))),
        "arena": Report.from_files([write_lines(tmp_path / "verdicts.jsonl", pairwise_rows())]),
    }
    for name, report in reports.items():
        write_page(report, tmp_path / f"{name}.html", created=NOW)
        for size in (LAPTOP, PHONE):
            page = Page(chromium, tmp_path / f"{name}.html", size=size)
            assert page.total == report.n + report.n_unscored
            assert page("document.documentElement.scrollWidth") <= size[0]
            assert page.complaints() == []
