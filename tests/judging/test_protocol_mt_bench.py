from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, make_item, reply, summary
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError, DataError
from ragalign.judging.answers import load_items, read_categories
from ragalign.judging.protocols.mt_bench import MtBench
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item


@pytest.fixture(scope="module")
def judgements(shared_data: Path) -> Path:
    return shared_data / "mt_bench" / "judgment_gpt-4_single_medusa.jsonl"


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_averages_are_those_of_the_stored_scores(judgements: Path) -> None:
    stored: dict[object, dict[object, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of(judgements):
        for key in (row["turn"], "all"):
            stored[row["model"]][key].append(float(str(row["score"])))
    table = MtBench().aggregate(replay(MtBench(), [judgements]).verdicts)
    assert {figures.model for figures in table} == set(stored)
    for figures in table:
        for key, name in ((1, "turn_1"), (2, "turn_2"), ("all", "overall")):
            scores = stored[figures.model][key]
            assert figures.values[name] == pytest.approx(sum(scores) / len(scores), abs=1e-12)
        assert (figures.n, figures.n_unscored, figures.judge) == (160, 0, "gpt-4")
        assert figures.values["n_stored_differing"] == 0


def test_every_score_is_read_from_the_judgement(judgements: Path) -> None:
    verdicts = replay(MtBench(strict=True), [judgements]).verdicts
    assert len(verdicts) == 480
    assert all(verdict.scores == {"score": verdict.metadata["stored"]} for verdict in verdicts)


def test_averages_by_category(shared_data: Path, judgements: Path) -> None:
    categories = read_categories(shared_data / "mt_bench" / "question.jsonl")
    protocol = MtBench(categories=categories)
    figures = protocol.aggregate(replay(protocol, [judgements]).verdicts)[0]
    expected = defaultdict(list)
    for row in rows_of(judgements):
        if row["model"] == figures.model:
            expected[categories[str(row["question_id"])]].append(float(str(row["score"])))
    assert figures.values["categories"] == pytest.approx({k: sum(v) / len(v) for k, v in expected.items()})
    assert len(expected) == 8


def test_the_published_prompts_give_the_recorded_prompts(shared_data: Path, judgements: Path) -> None:
    """Answers are cut out of the recorded prompts, and the prompts built again from them, byte for byte."""
    folder = shared_data / "mt_bench"
    rows = [row for row in rows_of(judgements) if row["model"] == "vicuna-7b-v1.3"]
    second = {row["question_id"]: str(row["user_prompt"]) for row in rows if row["turn"] == 2}
    questions = {str(row["question_id"]): row for row in rows_of(folder / "question.jsonl")}
    references = load_items(folder / "reference_answer_gpt-4.jsonl", questions=folder / "question.jsonl")
    known = {item.id: item.answer.turns for item in references}
    protocol = MtBench(prompt_file=folder / "judge_prompts.jsonl")
    built = {}
    for number, text in second.items():
        conversation = text[text.index("<|The Start of Assistant A's Conversation") :]
        question = questions[str(number)]
        turns = question["turns"]
        assert isinstance(turns, list)
        answers = conversation.split("### Assistant A:\n")[1:]
        first = answers[0][: answers[0].rindex(f"\n\n### User:\n{turns[1]}")]
        last = answers[-1][: answers[-1].rindex("\n\n<|The End")]
        item = Item(
            str(number),
            tuple(turns),
            Answer("vicuna", (first, last)),
            reference=known.get(str(number)),
            category=str(question["category"]),
        )
        for request in protocol.build(item):
            built[number, request.turn] = (request.messages[-1].content, request.prompt_name)
    for row in rows:
        judge = row["judge"]
        assert isinstance(judge, list)
        assert built[row["question_id"], row["turn"]] == (row["user_prompt"], judge[1])


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ("Rating: [[7]]", 7, 7),
        ("[[7.5]] or rather [[9]]", 7.5, None),
        ("[[7]] yes, [[7]]", 7, 7),
        ("[8] and [[6]]", 6, 6),
        ("Rating: [8]", 8, None),
        ("[[11]]", 11, None),
        ("[[0]]", 0, None),
        ("[[7.]]", 7, 7),
        ("[[seven]]", None, None),
        ("8/10", None, None),
        ("[[-3]]", None, None),
        ("$ERROR$", None, None),
        ("", None, None),
    ],
)
def test_scores(text: str, lenient: float | None, strict: float | None) -> None:
    (request,) = MtBench().build(make_item(baseline=None))
    for protocol, expected in ((MtBench(), lenient), (MtBench(strict=True), strict)):
        verdict = protocol.parse(request, reply(text))
        assert verdict.scores.get("score") == expected
        assert verdict.is_scored == (expected is not None)


@given(st.text(alphabet="[]0123456789. $ERO"))
def test_any_reply_is_scored_or_has_a_reason(text: str) -> None:
    protocol = MtBench()
    verdict = protocol.parse(protocol.build(make_item(baseline=None))[0], reply(text))
    assert verdict.is_scored == (verdict.reason is None)


def test_two_turns_are_two_requests_and_the_second_shows_both() -> None:
    item = make_item(baseline=None, turns=2)
    first, second = MtBench().build(item)
    assert (first.prompt_name, second.prompt_name) == ("single-v1", "single-v1-multi-turn")
    assert "ours 0.2" not in first.messages[-1].content
    assert all(text in second.messages[-1].content for text in ("ours 0.1", "ours 0.2", "turn 1?", "turn 2?"))


@pytest.mark.parametrize("category", ["math", "reasoning", "coding"])
def test_references_are_shown_and_needed(category: str) -> None:
    item = Item("1", ("Q",), Answer("m", ("A",)), reference=("REFERENCE",), category=category)
    (request,) = MtBench().build(item)
    assert request.prompt_name == "single-math-v1"
    assert "REFERENCE" in request.messages[-1].content
    with pytest.raises(DataError, match="needs a reference"):
        MtBench().build(Item("1", ("Q",), Answer("m", ("A",)), category=category))


def test_other_categories_do_without_a_reference() -> None:
    item = Item("1", ("Q",), Answer("m", ("A",)), reference=("REFERENCE",), category="writing")
    (request,) = MtBench().build(item)
    assert "REFERENCE" not in request.messages[-1].content


def test_hostile_text_stays() -> None:
    (request,) = MtBench().build(Item("1", (HOSTILE,), Answer("m", (HOSTILE + "!",))))
    assert request.messages[-1].content.count(HOSTILE) == 2


def test_a_missing_turn_is_an_error() -> None:
    with pytest.raises(DataError, match="lacks turn 2"):
        MtBench().build(Item("1", ("a", "b"), Answer("m", ("A",))))
    with pytest.raises(DataError, match="3 turns"):
        MtBench().build(make_item(turns=3))


def test_records_read_back_and_unscored_is_minus_one(tmp_path: Path) -> None:
    protocol = MtBench()
    scripted = ["[[8]]", "no score", "Rating: [[9.5]]", "[3]"]
    requests = [request for number in (101, 102) for request in protocol.build(make_item(number, turns=2))]
    judged = [ask(protocol, request, reply(text)) for request, text in zip(requests, scripted, strict=True)]
    rows = protocol.record(judged)
    assert [row["score"] for row in rows] == [8, -1, 9.5, 3]
    assert rows[0]["question_id"] == 101
    assert rows[0]["judge"] == ["judge", "single-v1"]
    path = tmp_path / "judge_single.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = replay(protocol, [path]).verdicts
    assert [(v.item_id, v.turn, v.scores) for v in read] == [
        (one.verdict.item_id, one.verdict.turn, one.verdict.scores) for one in judged
    ]
    (figures,) = protocol.aggregate(read)
    assert (figures.n, figures.n_unscored) == (3, 1)
    assert figures.values["overall"] == pytest.approx((8 + 9.5 + 3) / 3)
    assert summary(read[0])[0] == "101"


def test_rows_without_text_keep_their_stored_score(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    row = {"question_id": 1, "model": "m", "judge": ["j", "single-v1"], "turn": 1}
    path.write_text(json.dumps({**row, "score": 6}) + "\n" + json.dumps({**row, "score": -1, "turn": 2}) + "\n")
    (figures,) = MtBench().aggregate(replay(MtBench(), [path]).verdicts)
    assert (figures.n, figures.n_unscored, figures.values["overall"]) == (1, 1, 6)


def test_the_judgement_counts_and_a_differing_score_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    row = {"question_id": 1, "model": "m", "judge": ["j", "p"], "turn": 1, "judgment": "[[4]]", "score": 9}
    path.write_text(json.dumps(row) + "\n")
    (figures,) = MtBench().aggregate(replay(MtBench(), [path]).verdicts)
    assert (figures.values["overall"], figures.values["n_stored_differing"]) == (4, 1)


def test_a_prompt_file_lacks_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"name": "single-v1", "system_prompt": "", "prompt_template": "{question}{answer}"}))
    with pytest.raises(ConfigError, match="no prompt 'single-v1-multi-turn'"):
        MtBench(prompt_file=path)
    path.write_text("{}")
    with pytest.raises(ConfigError, match="line 1 has no string field 'name'"):
        MtBench(prompt_file=path)
