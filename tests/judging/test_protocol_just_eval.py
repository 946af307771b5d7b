from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, aspects, make_item, reply
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.judging.protocols.just_eval import GENERAL_ASPECTS, JustEval, clean_result, mode_of, parse_result
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item

GENERAL = dict.fromkeys(GENERAL_ASPECTS, "4")


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "just_eval"


def rows_of(path: Path) -> list[dict[str, object]]:
    rows = json.loads(path.read_text())
    assert isinstance(rows, list)
    return rows


def test_six_figures_from_several_files(folder: Path) -> None:
    files = sorted((folder / "gpt-3.5-turbo-0301").glob("*.json"))
    (figures,) = JustEval().aggregate(replay(JustEval(), files).verdicts)
    expected = {
        "helpfulness": 4.6063,
        "clarity": 4.9075,
        "factuality": 4.5663,
        "depth": 3.4175,
        "engagement": 3.46,
        "safety": 4.875,
    }
    assert {aspect: round(figures.values[aspect], 4) for aspect in expected} == pytest.approx(expected, abs=1e-4)
    assert figures.values["avg"] == pytest.approx(sum(figures.values[aspect] for aspect in expected) / 6)
    assert (figures.n, figures.n_unscored) == (1000, 0)
    assert figures.values["n_not_applicable"] == 43
    lengths = [
        len(str(row["output_cand"]).split()) for path in files if "general" in path.name for row in rows_of(path)
    ]
    assert figures.values["avg_lens"] == pytest.approx(sum(lengths) / len(lengths))


@pytest.mark.parametrize(
    ("name", "safety"),
    [("URIAL=inst_1k-Mistral-7B-v0.1", 4.915), ("vicuna-7b-v1.5", 4.60), ("gpt-4-0613", 4.97)],
)
def test_safety_runs(folder: Path, name: str, safety: float) -> None:
    path = folder / "safety" / f"{name}.score_safety.chatgpt.json"
    (figures,) = JustEval().aggregate(replay(JustEval(), [path]).verdicts)
    assert figures.values["safety"] == pytest.approx(safety, abs=1e-9)
    assert (figures.n, "avg" in figures.values) == (200, False)


def test_every_result_reads_back_to_the_stored_scores(folder: Path) -> None:
    n = 0
    for path in sorted(folder.rglob("*.json")):
        if path.name.endswith(("eval_res.json", "to_eval.json")):
            continue
        for verdict in replay(JustEval(), [path]).verdicts:
            stored = {
                aspect: 5.0 if judged["score"] == "N/A" else float(judged["score"])
                for aspect, judged in verdict.metadata["stored"].items()
            }
            assert verdict.scores == stored
            n += 1
    assert n == 1000 + 600 + 6 + 4


def test_parsed_results_stand_in_for_lost_texts(folder: Path, tmp_path: Path) -> None:
    whole = replay(JustEval(), [folder / "gpt-3.5-turbo-0301" / "gpt-3.5-turbo-0301.general.0-100.json"])
    rows = rows_of(folder / "gpt-3.5-turbo-0301" / "gpt-3.5-turbo-0301.general.0-100.json")
    path = tmp_path / "parsed.json"
    path.write_text(json.dumps([{key: value for key, value in row.items() if key != "result"} for row in rows]))
    found = replay(JustEval(), [path])
    assert not found.problems
    assert [verdict.scores for verdict in found.verdicts] == [verdict.scores for verdict in whole.verdicts]
    assert {verdict.raw for verdict in found.verdicts} == {""}


def test_the_recorded_length_of_the_small_example(folder: Path) -> None:
    """Its recorded scores are of another run on a scale to 10, but answers and lengths are the same."""
    (figures,) = JustEval().aggregate(replay(JustEval(), [folder / "score_multi.gpt4.json"]).verdicts)
    recorded = json.loads((folder / "score_multi.gpt4.eval_res.json").read_text())
    assert figures.n == recorded["total"]
    assert figures.values["avg_lens"] == pytest.approx(recorded["avg_lens"])
    assert figures.values["relevance"] <= 5 < recorded["relevance_mean"]


def test_a_template_gives_the_recorded_prompts(folder: Path, tmp_path: Path) -> None:
    """The template is one recorded prompt with its query and answer cut out; all others must follow from it."""
    for kind in ("general.0-100", "safety.900-1000"):
        rows = rows_of(folder / "gpt-3.5-turbo-0301" / f"gpt-3.5-turbo-0301.{kind}.json")
        query, answer, prompt = (str(rows[0][key]) for key in ("input", "output_cand", "prompt"))
        assert prompt.count(query) == prompt.count(answer) == 1
        template = tmp_path / f"{kind}.txt"
        template.write_text(
            prompt.replace("$", "$$").replace(query, "${instruction}").replace(answer, "${candidate}"), encoding="utf-8"
        )
        protocol = JustEval(prompt_file=template)
        for row in rows:
            item = Item(str(row["id"]), (str(row["input"]),), Answer("m", (str(row["output_cand"]),)))
            (request,) = protocol.build(item)
            assert request.messages[-1].content == row["prompt"]


def test_upstreams_python_module_is_a_prompt_file(tmp_path: Path) -> None:
    path = tmp_path / "templates.py"
    path.write_text(
        'import os\nMULTI_SCORE_TEMPLATE = """M ${instruction} ${candidate}"""\n'
        'SAFETY_SCORE_TEMPLATE = "S ${instruction} ${candidate}"\nraise SystemExit("never run")\n'
    )
    protocol = JustEval(prompt_file=path)
    assert protocol.build(make_item(5, baseline=None))[0].messages[-1].content.startswith("M ")
    assert protocol.build(make_item(805, baseline=None))[0].messages[-1].content.startswith("S ")
    path.write_text("X = 1")
    with pytest.raises(ConfigError, match="neither MULTI_SCORE_TEMPLATE nor"):
        JustEval(prompt_file=path)
    path.write_text("def (")
    with pytest.raises(ConfigError, match="not a valid Python file: line 1"):
        JustEval(prompt_file=path)


@pytest.mark.parametrize(
    ("item", "mode"),
    [
        (make_item(799, baseline=None), "score_multi"),
        (make_item(800, baseline=None), "score_safety"),
        (make_item(999, baseline=None), "score_safety"),
        (make_item(1000, baseline=None), "score_multi"),
        (Item("x", ("q",), Answer("m", ("a",)), category="safety"), "score_safety"),
        (Item("850", ("q",), Answer("m", ("a",)), category="regular"), "score_multi"),
        (Item("1", ("q",), Answer("m", ("a",)), metadata={"mode": "score_safety"}), "score_safety"),
    ],
)
def test_which_items_are_for_safety(item: Item, mode: str) -> None:
    assert mode_of(item) == mode
    (request,) = JustEval().build(item)
    assert ('"safety"' in request.messages[-1].content) == (mode == "score_safety")


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        (aspects(GENERAL), GENERAL, GENERAL),
        (f"```json\n{aspects(GENERAL)}\n```", GENERAL, GENERAL),
        (f"Here you are:\n{aspects(GENERAL)}\nDone.", GENERAL, None),
        (aspects({**GENERAL, "depth": "N/A"}), {**GENERAL, "depth": 5}, {k: 4 for k in GENERAL if k != "depth"}),
        (aspects({"helpfulness": "4"}), {"helpfulness": 4}, None),
        (aspects({**GENERAL, "depth": "6"}), {**GENERAL, "depth": 6}, None),
        (aspects({**GENERAL, "depth": "four"}), None, None),
        (aspects({**GENERAL, "depth": float("nan")}), None, None),
        ('{"helpfulness": {"reason": "no score"}}', None, None),
        ('{"helpfulness": "4"}', None, None),
        ("{}", None, None),
        ("[]", None, None),
        ("{" * 5000, None, None),
        (aspects(GENERAL)[:-20], None, None),
        ("I cannot judge this.", None, None),
        ("", None, None),
    ],
)
def test_replies(text: str, lenient: dict[str, object] | None, strict: dict[str, object] | None) -> None:
    (request,) = JustEval().build(make_item(baseline=None))
    for protocol, expected in ((JustEval(), lenient), (JustEval(strict=True), strict)):
        verdict = protocol.parse(request, reply(text))
        assert verdict.scores == {aspect: float(str(score)) for aspect, score in (expected or {}).items()}
        assert verdict.is_scored == (expected is not None)


def test_line_breaks_and_lone_backslashes_are_survived_as_upstream() -> None:
    text = '{"safety": {"reason": "first\nsecond \\(x\\)", "score": "3"}}'
    (request,) = JustEval().build(make_item(850, baseline=None))
    assert JustEval().parse(request, reply(text)).scores == {"safety": 3.0}


@given(st.text())
def test_a_cleaned_result_reads_as_before(reason: str) -> None:
    text = json.dumps({"safety": {"reason": reason, "score": "2"}})
    if "```" in text:
        return
    assert parse_result(text)["safety"]["score"] == "2"


@given(st.text())
def test_any_reply_is_scored_or_has_a_reason(text: str) -> None:
    protocol = JustEval()
    verdict = protocol.parse(protocol.build(make_item(baseline=None))[0], reply(text))
    assert verdict.is_scored == (verdict.reason is None)


def test_cleaning_is_upstreams() -> None:
    assert clean_result('x```json\n{"a": "b\\d"}\n``` y') == '{"a": "b\\\\d"}'


def test_hostile_text_stays() -> None:
    (request,) = JustEval().build(Item("1", (HOSTILE,), Answer("m", (HOSTILE + "!",))))
    assert request.messages[-1].content.count(HOSTILE) == 2


def test_records_read_back_and_unscored_rows_wait_for_upstream(tmp_path: Path) -> None:
    protocol = JustEval()
    scripted = [(7, aspects(GENERAL)), (8, "no idea"), (801, aspects({"safety": "N/A"}))]
    judged = [ask(protocol, protocol.build(make_item(n, baseline=None))[0], reply(text)) for n, text in scripted]
    rows = protocol.record(judged)
    assert [row["result"] == "N/A" for row in rows] == ["parsed_result" not in row for row in rows]
    assert [row["eval_config"]["mode"] for row in rows] == ["score_multi", "score_multi", "score_safety"]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(rows))
    read = replay(protocol, [path]).verdicts
    assert [v.scores for v in read] == [one.verdict.scores for one in judged]
    (figures,) = protocol.aggregate(read)
    assert figures.reasons == {"never judged: the result is N/A": 1}
    assert (figures.n, figures.values["safety"], figures.values["helpfulness"]) == (2, 5.0, 4.0)


def test_two_judges_of_the_same_answers_are_two_lines() -> None:
    protocol = JustEval()
    (request,) = protocol.build(make_item(baseline=None))
    verdicts = [protocol.parse(request, reply(aspects(GENERAL), judge)) for judge in ("one", "two")]
    assert [figures.judge for figures in protocol.aggregate(verdicts)] == ["one", "two"]


def test_another_judge_for_safety_is_one_line() -> None:
    protocol = JustEval()
    general = protocol.parse(protocol.build(make_item(1, baseline=None))[0], reply(aspects(GENERAL), "one"))
    safety = protocol.parse(protocol.build(make_item(900, baseline=None))[0], reply(aspects({"safety": "1"}), "two"))
    (figures,) = protocol.aggregate([general, safety])
    assert (figures.judge, figures.n) == ("one, two", 2)
    assert figures.values["avg"] == pytest.approx((5 * 4 + 1) / 6)
