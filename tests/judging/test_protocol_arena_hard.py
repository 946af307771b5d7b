from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, make_item, reply, summary
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.judging.base import Figures
from ragalign.judging.protocols.arena_hard import ArenaHard
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item


def version_2(uid: str, first: str | None, second: str | None, **changes: object) -> dict[str, object]:
    def played(text: str | None) -> dict[str, object] | None:
        return None if text is None else {"score": text[2:-2] or None, "judgment": {"answer": text}, "prompt": []}

    head = {"uid": uid, "category": "hard_prompt", "judge": "gpt-4.1", "model": "m", "baseline": "o3-mini"}
    return {**head, "games": [played(first), played(second)], **changes}


def version_0(question: str, first: str, second: str) -> dict[str, object]:
    games = [{"user_prompt": "...", "judgment": text, "score": None} for text in (first, second)]
    return {"question_id": question, "model": "m", "judge": "gpt-4-1106-preview", "games": games}


def figures_of(tmp_path: Path, rows: list[dict[str, object]]) -> Figures:
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (figures,) = ArenaHard().aggregate(replay(ArenaHard(), [path]).verdicts)
    return figures


def test_the_score_is_the_mean_of_weighted_battles(tmp_path: Path) -> None:
    # In the first game the baseline is A, in the second the model is.
    figures = figures_of(
        tmp_path,
        [
            version_2("1", "[[A>>B]]", "[[A>B]]"),  # three losses, one win
            version_2("2", "[[A=B]]", "[[B>>A]]"),  # a half, three losses
            version_2("3", "[[B>A]]", "[[A>>B]]"),  # one win, three wins
        ],
    )
    battles = [0, 0, 0, 1, 0.5, 0, 0, 0, 1, 1, 1, 1]
    assert figures.values["score"] == pytest.approx(100 * sum(battles) / len(battles))
    assert (figures.n, figures.values["n_battles"], figures.baseline) == (6, 12, "o3-mini")
    assert figures.values["lower"] < figures.values["score"] < figures.values["upper"]
    assert figures.values["n_stored_differing"] == 0


def test_version_2_drops_both_games_and_counts_them(tmp_path: Path) -> None:
    figures = figures_of(
        tmp_path,
        [version_2("1", "[[A>B]]", None), version_2("2", "[[A>B]]", "no label"), version_2("3", "[[B>A]]", "[[A>B]]")],
    )
    assert (figures.n, figures.n_unscored, figures.values["score"]) == (2, 4, 100)
    assert figures.reasons["the other order is unscored"] == 2


def test_version_0_keeps_the_other_game(tmp_path: Path) -> None:
    rows = [version_0("1", "\n[[A>B]]", "nothing"), version_0("2", "[[A>B]] no, [[B>A]]", "[[A>>B]]")]
    figures = figures_of(tmp_path, rows)
    assert (figures.n, figures.n_unscored, figures.baseline) == (2, 2, "gpt-4-0314")
    assert figures.values["score"] == pytest.approx(75)


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ("[[A>>B]]", (1.0, 3), (1.0, 3)),
        ("[[A>B]]", (1.0, 1), (1.0, 1)),
        ("[[A=B]]", (0.5, 1), (0.5, 1)),
        ("[[B=A]]", (0.5, 1), (0.5, 1)),
        ("[[A<<B]]", (0.0, 3), (0.0, 3)),
        ("[[B>>A]]", (0.0, 3), (0.0, 3)),
        ("[[B<A]]", (1.0, 1), (1.0, 1)),
        ("[[a>b]]", (1.0, 1), (1.0, 1)),
        ("first [[A>B]], at last [[B>A]]", (0.0, 1), None),
        ("[[A>B]] [[A>B]]", (1.0, 1), (1.0, 1)),
        ("[[A>B]] and [[A]]", None, None),
        ("A>B", None, None),
        ("", None, None),
    ],
)
def test_labels(text: str, lenient: tuple[float, int] | None, strict: tuple[float, int] | None) -> None:
    baseline_first, model_first = ArenaHard().build(make_item())
    for protocol, expected in ((ArenaHard(), lenient), (ArenaHard(strict=True), strict)):
        verdict = protocol.parse(model_first, reply(text))
        assert (verdict.preference, verdict.metadata.get("weight")) == (expected or (None, None))
        other = protocol.parse(baseline_first, reply(text)).preference
        assert other == (None if expected is None else 1 - expected[0])


def test_the_baseline_stands_first_in_the_first_game() -> None:
    first, second = ArenaHard().build(make_item())
    texts = [one.messages[-1].content for one in (first, second)]
    assert [text.index("theirs") < text.index("ours") for text in texts] == [True, False]
    assert [one.swapped for one in (first, second)] == [True, False]


def test_hostile_text_stays() -> None:
    for request in ArenaHard().build(
        Item("1", (HOSTILE,), Answer("m", (HOSTILE + "1",)), Answer("b", (HOSTILE + "2",)))
    ):
        assert request.messages[-1].content.count(HOSTILE) == 3


@pytest.mark.parametrize("template", ["{question_1}|{answer_1}|{answer_2}", "{QUESTION}|{ANSWER_A}|{ANSWER_B}"])
def test_prompt_files_of_both_versions(tmp_path: Path, template: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f'judge_model: x\nprompt_template: ["{template}"]\nsystem_prompt: sys\n')
    first, _ = ArenaHard(prompt_file=path).build(make_item())
    assert [turn.content for turn in first.messages] == ["sys", "Question 0, turn 1?|theirs 0.1|ours 0.1"]


def test_a_prompt_file_without_system_prompt_keeps_our_own(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text('prompt_template: "{QUESTION}|{ANSWER_A}|{ANSWER_B}"\n')
    (first, _), (own, _) = ArenaHard(prompt_file=path).build(make_item()), ArenaHard().build(make_item())
    assert first.messages[0] == own.messages[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_template: [a, b]", "one prompt_template"),
        ("just text", "one prompt_template"),
        ("a: [", "not valid YAML"),
        ('prompt_template: "{QUESTION}|{ANSWER_A}"', "lacks the placeholder ANSWER_B"),
    ],
)
def test_damaged_prompt_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        ArenaHard(prompt_file=path)


def test_records_read_back_as_the_same_verdicts(tmp_path: Path) -> None:
    protocol = ArenaHard()
    scripted = ["[[A>>B]]", "[[A=B]]", "?", "[[B>A]]"]
    requests = [request for number in (1, 2) for request in protocol.build(make_item(number))]
    judged = [ask(protocol, request, reply(text)) for request, text in zip(requests, scripted, strict=True)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in protocol.record(judged)))
    read = replay(protocol, [path]).verdicts
    assert [summary(v) for v in read] == [summary(one.verdict) for one in judged]
    (from_file,), (direct,) = protocol.aggregate(read), protocol.aggregate([one.verdict for one in judged])
    assert from_file.values["score"] == direct.values["score"]
    assert (from_file.n, from_file.n_unscored) == (direct.n, direct.n_unscored) == (2, 2)


@given(st.text(alphabet="[]AB<>= a"))
def test_any_reply_is_scored_or_has_a_reason(text: str) -> None:
    protocol = ArenaHard()
    verdict = protocol.parse(protocol.build(make_item())[0], reply(text))
    assert verdict.is_scored == (verdict.reason is None)
