from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, make_item, reply, summary
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import DataError
from ragalign.judging.protocols.urial_pairwise import ASPECTS, UrialPairwise
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item


def choices(**said: str) -> str:
    return json.dumps({"rationale": "because", "choices": said})


def all_of(choice: str) -> str:
    return choices(**dict.fromkeys(ASPECTS, choice))


def row(model_is: str, said: Mapping[str, str], **changes: object) -> dict[str, object]:
    """A row as URIAL's tool writes it."""
    other = "B" if model_is == "A" else "A"
    return {
        "input": "Q?",
        "model_output": ["ours"],
        "ref_output": "theirs",
        "generator": "urial",
        "ref_generator": "chat",
        "eval_config": {"mode": "pairwise", "gpt": "gpt-4-1106-preview", "max_words": -1},
        "assignment": {model_is: "urial", other: "chat"},
        "prompt": "...",
        "result": json.dumps({"rationale": "r", "choices": said}),
        **changes,
    }


def test_shares_follow_the_assignment(tmp_path: Path) -> None:
    every = dict.fromkeys(ASPECTS, "A")
    rows = [
        row("A", every),  # win
        row("B", every),  # loss
        row("B", dict.fromkeys(ASPECTS, "B")),  # win
        row("A", dict.fromkeys(ASPECTS, "tie")),
        row("A", {**every, "safety": "neither"}),  # win, but safety does not count
        row("A", every, result="N/A"),
        row("A", every, result=None),
    ]
    path = tmp_path / "urial.json"
    path.write_text(json.dumps(rows))
    (figures,) = UrialPairwise().aggregate(replay(UrialPairwise(), [path]).verdicts)
    assert (figures.model, figures.baseline, figures.judge) == ("urial", "chat", "gpt-4-1106-preview")
    assert (figures.n, figures.n_unscored) == (5, 2)
    assert figures.values["win"]["depth"] == pytest.approx(60)
    assert figures.values["tie"]["depth"] == pytest.approx(20)
    assert figures.values["lose"]["depth"] == pytest.approx(20)
    assert figures.values["win"]["safety"] == pytest.approx(50)
    assert figures.values["n_by_aspect"] == {**dict.fromkeys(ASPECTS, 5), "safety": 4}


def test_upstreams_fences_and_backslashes(tmp_path: Path) -> None:
    text = "```" + '{"rationale": "a \\frac", "choices": {"depth": "A"}}' + "```"
    path = tmp_path / "urial.json"
    path.write_text(json.dumps([row("A", {}, result=text)]))
    (verdict,) = replay(UrialPairwise(), [path]).verdicts
    assert verdict.scores == {"depth": 1.0}


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        (all_of("A"), 6, 6),
        (all_of("tie"), 6, 6),
        (choices(depth="B"), 1, 0),
        (choices(depth="Both"), 0, 0),
        ('{"choices": "A"}', 0, 0),
        ('{"choices": {"depth": ["A"]}}', 0, 0),
        ("A wins", 0, 0),
        ("[1]", 0, 0),
        ("", 0, 0),
        (json.dumps({"rationale": 'says "x"', "choices": dict.fromkeys(ASPECTS, "B")}), 6, 6),
    ],
)
def test_replies(text: str, lenient: int, strict: int) -> None:
    (request,) = UrialPairwise().build(make_item())
    assert len(UrialPairwise().parse(request, reply(text)).scores) == lenient
    assert len(UrialPairwise(strict=True).parse(request, reply(text)).scores) == strict


def test_the_assignment_is_drawn_and_undone() -> None:
    protocol = UrialPairwise()
    drawn = []
    for number in range(200):
        (request,) = protocol.build(make_item(number))
        text = request.messages[-1].content
        model_first = text.index("ours") < text.index("theirs")
        assert model_first == (not request.swapped)
        verdict = protocol.parse(request, reply(all_of("A")))
        assert set(verdict.scores.values()) == {float(model_first)}
        drawn.append(model_first)
    assert 70 < sum(drawn) < 130
    assert drawn == [not protocol.build(make_item(number))[0].swapped for number in range(200)]
    other = UrialPairwise(seed=1)
    assert drawn != [not other.build(make_item(number))[0].swapped for number in range(200)]


def test_both_orders_are_averaged() -> None:
    protocol = UrialPairwise(both_orders=True)
    first, second = protocol.build(make_item())
    assert first.swapped != second.swapped
    (figures,) = protocol.aggregate([protocol.parse(one, reply(all_of("A"))) for one in (first, second)])
    assert (figures.n, figures.values["tie"]["depth"]) == (1, 100)


def test_hostile_text_stays() -> None:
    (request,) = UrialPairwise().build(
        Item("1", (HOSTILE,), Answer("m", (HOSTILE + "1",)), Answer("b", (HOSTILE + "2",)))
    )
    assert request.messages[-1].content.count(HOSTILE) == 3


def test_records_read_back_as_the_same_verdicts(tmp_path: Path) -> None:
    protocol = UrialPairwise()
    scripted = [all_of("A"), "what?", all_of("tie"), choices(depth="B")]
    judged = [ask(protocol, protocol.build(make_item(i))[0], reply(text)) for i, text in enumerate(scripted)]
    rows = protocol.record(judged)
    assert ["parsed_result" in one for one in rows] == [True, False, True, True]
    path = tmp_path / "urial.json"
    path.write_text(json.dumps(rows))
    assert [summary(v) for v in replay(protocol, [path]).verdicts] == [summary(one.verdict) for one in judged]


@given(st.text())
def test_any_reply_is_scored_or_has_a_reason(text: str) -> None:
    protocol = UrialPairwise()
    verdict = protocol.parse(protocol.build(make_item())[0], reply(text))
    assert verdict.is_scored == (verdict.reason is None)


def test_a_baseline_is_needed() -> None:
    with pytest.raises(DataError, match="no baseline answer"):
        UrialPairwise().build(make_item(baseline=None))
