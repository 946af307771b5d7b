from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, make_item, reply, summary

from ragalign.errors import DataError
from ragalign.judging.base import Figures, Verdict
from ragalign.judging.protocols.mt_bench_pairwise import MtBenchPairwise
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def game(question: int, first: str, second: str, models: tuple[str, str] = ("a", "b")) -> dict[str, object]:
    """A row as FastChat writes it: the second game has the answers swapped."""
    winners = ({"[[A]]": "model_1", "[[B]]": "model_2"}, {"[[A]]": "model_2", "[[B]]": "model_1"})
    return {
        "question_id": question,
        "model_1": models[0],
        "model_2": models[1],
        "g1_winner": winners[0].get(first, "tie" if first == "[[C]]" else "error"),
        "g2_winner": winners[1].get(second, "tie" if second == "[[C]]" else "error"),
        "judge": ["gpt-4", "pair-v2"],
        "g1_user_prompt": "...",
        "g1_judgment": f"Because. {first}",
        "g2_user_prompt": "...",
        "g2_judgment": f"Because. {second}",
        "turn": 1,
        "tstamp": 0.0,
    }


def figures_of(path: Path) -> dict[str, Figures]:
    protocol = MtBenchPairwise()
    return {one.model: one for one in protocol.aggregate(replay(protocol, [path]).verdicts)}


def test_disagreement_is_a_tie_and_errors_are_left_out(tmp_path: Path) -> None:
    rows = [
        game(1, "[[A]]", "[[B]]"),  # a wins both
        game(2, "[[B]]", "[[A]]"),  # b wins both
        game(3, "[[A]]", "[[A]]"),  # each order its own winner
        game(4, "[[C]]", "[[C]]"),
        game(5, "[[A]]", "[[C]]"),
        game(6, "[[A]]", "none"),
        game(7, "[[A]]", "[[B]]"),
    ]
    table = figures_of(write(tmp_path / "pair.jsonl", rows))
    a, b = table["a"], table["b"]
    assert (a.n, a.n_unscored) == (6, 1)
    assert [a.values[key] for key in ("win", "loss", "tie")] == [2, 1, 3]
    assert [b.values[key] for key in ("win", "loss", "tie")] == [1, 2, 3]
    assert a.values["win_rate"] == pytest.approx(100 * 2 / 6)
    assert a.values["loss_rate"] == pytest.approx(100 / 6)
    assert a.values["win_rate_adjusted"] == pytest.approx(100 * 3.5 / 6)
    assert a.values["n_inconsistent"] == 2


def test_a_model_meets_several_opponents(tmp_path: Path) -> None:
    rows = [game(1, "[[A]]", "[[B]]"), game(1, "[[A]]", "[[B]]", ("c", "a"))]
    table = figures_of(write(tmp_path / "pair.jsonl", rows))
    assert (table["a"].values["win"], table["a"].values["loss"]) == (1, 1)
    assert table["a"].baseline == "b, c"


def test_a_row_that_is_there_twice_counts_twice_as_upstream(tmp_path: Path) -> None:
    table = figures_of(write(tmp_path / "pair.jsonl", [game(1, "[[A]]", "[[B]]")] * 2))
    assert table["a"].values["win"] == 2


def test_stored_winners_where_there_is_no_text(tmp_path: Path) -> None:
    row = {"question_id": 1, "model_1": "a", "model_2": "b", "judge": ["j", "p"]}
    rows = [{**row, "winner": "model_1"}, {**row, "g1_winner": "tie", "g2_winner": "error"}]
    table = figures_of(write(tmp_path / "pair.jsonl", rows))  # type: ignore[arg-type]
    assert (table["a"].values["win"], table["a"].n, table["a"].n_unscored) == (1, 1, 1)
    assert table["a"].reasons == {"the stored winner is 'error'": 1}


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ("[[A]]", 1.0, 1.0),
        ("[[B]]", 0.0, 0.0),
        ("[[C]]", 0.5, 0.5),
        ("not [[B]] but [[A]]", 1.0, None),
        ("A is better", None, None),
        ("", None, None),
    ],
)
def test_labels(text: str, lenient: float | None, strict: float | None) -> None:
    first, second = MtBenchPairwise().build(make_item())
    for protocol, expected in ((MtBenchPairwise(), lenient), (MtBenchPairwise(strict=True), strict)):
        assert protocol.parse(first, reply(text)).preference == expected
        mirrored = None if expected is None else 1 - expected
        assert protocol.parse(second, reply(text)).preference == mirrored


def test_both_orders_and_both_turns_are_asked() -> None:
    requests = MtBenchPairwise().build(make_item(turns=2))
    assert [(one.turn, one.swapped) for one in requests] == [(1, False), (1, True), (2, False), (2, True)]
    for one in requests:
        text = one.messages[-1].content
        assert (text.index("ours") < text.index("theirs")) == (not one.swapped)
        assert ("ours 0.2" in text) == (one.turn == 2)


def test_hostile_text_stays() -> None:
    item = Item("1", ("Q",), Answer("m", (HOSTILE + "1",)), Answer("b", (HOSTILE + "2",)))
    for request in MtBenchPairwise().build(item):
        assert request.messages[-1].content.count(HOSTILE) == 2


def test_records_read_back_as_the_same_verdicts(tmp_path: Path) -> None:
    protocol = MtBenchPairwise()
    scripted = ["[[A]]", "[[B]]", "[[C]]", "?", "[[B]]", "[[B]]", "[[A]]", "[[A]]"]
    requests = [request for number in (81, 82) for request in protocol.build(make_item(number, turns=2))]
    judged = [ask(protocol, request, reply(text)) for request, text in zip(requests, scripted, strict=True)]
    rows = protocol.record(judged)
    assert [(row["turn"], row["g1_winner"], row["g2_winner"]) for row in rows] == [
        (1, "model_1", "model_1"),
        (2, "tie", "error"),
        (1, "model_2", "model_1"),
        (2, "model_1", "model_2"),
    ]
    read = replay(protocol, [write(tmp_path / "pair.jsonl", rows)]).verdicts
    assert [summary(v) for v in read] == [summary(one.verdict) for one in judged]

    def figures(verdicts: list[Verdict]) -> list[dict[str, object]]:
        return [dict(one.values) for one in protocol.aggregate(verdicts)]

    assert figures(list(read)) == figures([one.verdict for one in judged])


def test_one_order_alone_is_no_comparison() -> None:
    protocol = MtBenchPairwise()
    first, _ = protocol.build(make_item())
    table = protocol.aggregate([protocol.parse(first, reply("[[A]]"))])
    assert all(one.n == 0 and one.reasons == {"only one order was judged": 1} for one in table)


def test_a_baseline_with_all_turns_is_needed() -> None:
    with pytest.raises(DataError, match="no baseline answer"):
        MtBenchPairwise().build(make_item(baseline=None))
    short = Item("1", ("a", "b"), Answer("m", ("x", "y")), Answer("base", ("x",)))
    with pytest.raises(DataError, match="the answer of base lacks turn 2"):
        MtBenchPairwise().build(short)
