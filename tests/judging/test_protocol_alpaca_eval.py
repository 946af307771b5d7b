from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, make_item, reply, summary, token_reply
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import DataError
from ragalign.judging.base import Protocol
from ragalign.judging.protocols.alpaca_eval import AlpacaEval1, AlpacaEval2, is_swapped
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item, JudgeReply

RECORDED = [
    ("v1", "falcon-7b-instruct"),
    ("v1", "llama-2-13b-chat-hf"),
    ("v1", "text_davinci_001"),
    ("v2", "FuseChat-Llama-3.2-1B-Instruct"),
    ("v2", "NullModel"),
    ("v2", "OpenHermes-2.5-Mistral-7B"),
    ("v2", "Qwen-14B-Chat"),
]


def protocol_of(version: str) -> Protocol:
    return AlpacaEval1() if version == "v1" else AlpacaEval2()


def leaderboard(folder: Path, name: str) -> dict[str, str]:
    with (folder / "leaderboard.csv").open() as file:
        return next(row for row in csv.DictReader(file) if row[""] == name)


@pytest.mark.parametrize(("version", "name"), RECORDED)
def test_recorded_annotations_give_the_leaderboards_figures(shared_data: Path, version: str, name: str) -> None:
    folder = shared_data / "alpaca_eval" / version
    protocol = protocol_of(version)
    (figures,) = protocol.aggregate(replay(protocol, [folder / name / "annotations.json"]).verdicts)
    published = leaderboard(folder, name)
    for key in ("win_rate", "standard_error", "discrete_win_rate"):
        assert figures.values[key] == pytest.approx(float(published[key]), abs=1e-6), key
    for key in ("n_wins", "n_wins_base", "n_draws", "n_total"):
        assert figures.values[key] == int(published[key]), key
    assert figures.n + figures.n_unscored == 805
    if name != "falcon-7b-instruct":  # its file holds another model's answers, as its generator_2 says
        assert figures.values["avg_length"] == int(published["avg_length"])


@pytest.mark.parametrize(("version", "name"), RECORDED)
def test_every_stored_preference_follows_from_the_judges_words(shared_data: Path, version: str, name: str) -> None:
    path = shared_data / "alpaca_eval" / version / name / "annotations.json"
    verdicts = replay(protocol_of(version), [path]).verdicts
    checked = [verdict for verdict in verdicts if "rederived" in verdict.metadata]
    rows = json.loads(path.read_text())
    derivable = [row for row in rows if row.get("raw_completion") or row["output_1"] == row["output_2"]]
    assert len(checked) == len(derivable)
    for verdict in checked:
        assert verdict.preference is not None
        assert verdict.metadata["rederived"] == pytest.approx(verdict.preference, abs=1e-9)


@given(st.text())
def test_the_swap_is_upstreams_coin(instruction: str) -> None:
    coin = random.Random("is_switched_outputs" + instruction + "0").choices([False, True])[0]
    assert is_swapped(instruction) == coin


def items_of_both_orders() -> list[Item]:
    items = [make_item(number) for number in range(20)]
    assert {is_swapped(item.instruction) for item in items} == {False, True}
    return items


@pytest.mark.parametrize("first_is_better", [True, False])
def test_alpaca_eval_2_undoes_the_swap(first_is_better: bool) -> None:
    protocol = AlpacaEval2()
    for item in items_of_both_orders():
        (request,) = protocol.build(item)
        text = request.messages[-1].content
        model_first = text.index("ours") < text.index("theirs")
        assert model_first == is_swapped(item.instruction) == (not request.swapped)
        verdict = protocol.parse(
            request, token_reply({"m": 0.9, "M": 0.1} if first_is_better else {"m": 0.1, "M": 0.9})
        )
        assert verdict.preference == pytest.approx(0.9 if model_first == first_is_better else 0.1)


@pytest.mark.parametrize("rank_of_first", [1, 2])
def test_alpaca_eval_1_undoes_the_swap(rank_of_first: int) -> None:
    protocol = AlpacaEval1()
    for item in items_of_both_orders():
        (request,) = protocol.build(item)
        text = request.messages[-1].content
        model_first = text.index("ours") < text.index("theirs")
        ranking = [{"model": "model_1", "rank": rank_of_first}, {"model": "model_2", "rank": 3 - rank_of_first}]
        verdict = protocol.parse(request, reply(repr(ranking)))
        assert verdict.preference == float(model_first == (rank_of_first == 1))


def test_a_missing_token_has_no_probability() -> None:
    item = next(item for item in items_of_both_orders() if not is_swapped(item.instruction))
    (request,) = AlpacaEval2().build(item)
    assert AlpacaEval2().parse(request, token_reply({"m": 0.7, "The": 0.1})).preference == 0
    assert AlpacaEval2().parse(request, token_reply({"M": 0.7, "The": 0.1})).preference == 1
    strict = AlpacaEval2(strict=True).parse(request, token_reply({"M": 0.7}))
    assert strict.reason == "m is not among the most likely tokens"


@pytest.mark.parametrize(
    "answer",
    [
        token_reply({"The": 0.9}),
        token_reply({}),
        reply("m"),
        JudgeReply("judge", {}),
        JudgeReply("judge", {"logprobs": {"content": []}, "message": {"content": "m"}}),
        JudgeReply("judge", {"logprobs": None}),
        JudgeReply("judge", {"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": None}, {}]}]}}),
    ],
)
def test_a_reply_without_the_tokens_is_unscored(answer: JudgeReply) -> None:
    (request,) = AlpacaEval2().build(make_item())
    verdict = AlpacaEval2().parse(request, answer)
    assert verdict.preference is None
    assert verdict.reason


@given(st.floats(1e-9, 1), st.floats(1e-9, 1))
def test_the_preference_is_the_second_tokens_share(first: float, second: float) -> None:
    protocol = AlpacaEval2()
    item = next(item for item in items_of_both_orders() if not is_swapped(item.instruction))
    verdict = protocol.parse(protocol.build(item)[0], token_reply({"m": first, "M": second}))
    assert verdict.preference == pytest.approx(second / (first + second), abs=1e-9)


@pytest.mark.parametrize(
    ("text", "lenient", "strict"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", True, True),
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 1}]", True, False),
        ("[{'model': 'model_1', 'rank': 2}]", True, False),
        ("[{'model': 'model_1', 'rank': 3}, {'model': 'model_2', 'rank': 1}]", False, False),
        ("[{'model': 'model_2', 'rank': 1}]", False, False),
        ("model_1 is better", False, False),
        ("[]", False, False),
        ("[1, 2]", False, False),
        ("[{'model': 'model_1'}]", False, False),
        ("__import__('os').getcwd()", False, False),
        ("", False, False),
    ],
)
def test_rankings(text: str, lenient: bool, strict: bool) -> None:
    (request,) = AlpacaEval1().build(make_item())
    assert AlpacaEval1().parse(request, reply(text)).is_scored == lenient
    assert AlpacaEval1(strict=True).parse(request, reply(text)).is_scored == strict


@pytest.mark.parametrize("protocol", [AlpacaEval1(), AlpacaEval2()])
@given(text=st.text())
def test_any_reply_is_scored_or_has_a_reason(protocol: Protocol, text: str) -> None:
    verdict = protocol.parse(protocol.build(make_item())[0], reply(text))
    assert verdict.is_scored == (verdict.reason is None)


def test_identical_answers_are_a_draw_and_nobody_is_asked() -> None:
    item = Item("1", ("Why?",), Answer("m", ("same",)), Answer("b", ("same",)))
    verdict = AlpacaEval2().settle(item, "gpt-4")
    assert verdict is not None
    assert (verdict.preference, verdict.judge) == (0.5, "gpt-4")
    assert AlpacaEval2().settle(make_item(), "gpt-4") is None


def test_hostile_text_stays_and_starts_no_message() -> None:
    item = Item("1", (HOSTILE,), Answer("m", (HOSTILE + "1",)), Answer("b", (HOSTILE + "2",)))
    (request,) = AlpacaEval2().build(item)
    assert [turn.role for turn in request.messages] == ["system", "user"]
    assert request.messages[-1].content.count(HOSTILE) == 3
    assert request.as_body()["top_logprobs"] == 5
    assert request.as_body()["max_tokens"] == 1


def test_both_orders_are_averaged() -> None:
    protocol = AlpacaEval2(both_orders=True)
    first, second = protocol.build(make_item())
    # A judge that always says 80 percent for the first answer is undecided.
    verdicts = [protocol.parse(request, token_reply({"m": 0.8, "M": 0.2})) for request in (first, second)]
    (figures,) = protocol.aggregate(verdicts)
    assert figures.n == 1
    assert figures.values["win_rate"] == pytest.approx(50)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_records_read_back_as_the_same_verdicts(tmp_path: Path, version: str) -> None:
    protocol = protocol_of(version)
    ranking = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
    answers = [reply(ranking), reply("?")] if version == "v1" else [token_reply({"m": 0.3, "M": 0.6}), token_reply({})]
    judgements = [ask(protocol, protocol.build(make_item(i))[0], one) for i, one in enumerate(answers)]
    rows = protocol.record(judgements)
    assert rows[1]["preference"] is None
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    replayed = replay(protocol, [path])
    assert [summary(v) for v in replayed.verdicts] == [summary(one.verdict) for one in judgements]
    assert replayed.verdicts[0].metadata["rederived"] == pytest.approx(judgements[0].verdict.preference)
    (figures,) = protocol.aggregate(replayed.verdicts)
    assert figures.values["n_rederived_differing"] == 0
    assert figures.reasons == {"no preference is stored": 1}


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (None, "no preference is stored"),
        (-1, "is not between 1 and 2"),
        (2.5, "is not between"),
        ("x", "is not a number"),
    ],
)
def test_an_odd_stored_preference_is_unscored(tmp_path: Path, stored: object, reason: str) -> None:
    row = {"instruction": "i", "output_1": "a", "generator_1": "b", "output_2": "c", "generator_2": "m"}
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{**row, "preference": stored}, {**row, "preference": 0}]))
    (figures,) = AlpacaEval2().aggregate(replay(AlpacaEval2(), [path]).verdicts)
    assert (figures.n, figures.n_unscored, figures.values["n_draws"]) == (1, 1, 1)
    assert reason in next(iter(figures.reasons))


def test_a_tampered_preference_is_noticed(shared_data: Path, tmp_path: Path) -> None:
    rows = json.loads((shared_data / "alpaca_eval/v2/Qwen-14B-Chat/annotations.json").read_text())[:50]
    rows[7]["preference"] = 3 - rows[7]["preference"]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    (figures,) = AlpacaEval2().aggregate(replay(AlpacaEval2(), [path]).verdicts)
    assert figures.values["n_rederived_differing"] == 1


def test_words_in_another_annotators_form_check_nothing(shared_data: Path, tmp_path: Path) -> None:
    rows = json.loads((shared_data / "alpaca_eval/v2/Qwen-14B-Chat/annotations.json").read_text())[:20]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{**row, "annotator": "mine", "raw_completion": "Output (a)"} for row in rows]))
    (figures,) = AlpacaEval2().aggregate(replay(AlpacaEval2(), [path]).verdicts)
    assert (figures.n, "n_rederived" in figures.values) == (20, False)


def test_newer_field_names_are_read(shared_data: Path, tmp_path: Path) -> None:
    rows = json.loads((shared_data / "alpaca_eval/v2/Qwen-14B-Chat/annotations.json").read_text())[:20]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{**row, "preference_raw_completion": row.pop("raw_completion")} for row in rows]))
    (figures,) = AlpacaEval2().aggregate(replay(AlpacaEval2(), [path]).verdicts)
    assert (figures.values["n_rederived"], figures.values["n_rederived_differing"]) == (20, 0)


def test_a_baseline_is_needed() -> None:
    with pytest.raises(DataError, match="no baseline answer"):
        AlpacaEval2().build(make_item(baseline=None))


def test_a_pool_of_annotators_is_one_line(shared_data: Path, tmp_path: Path) -> None:
    """Upstream averages all rows of a file, whoever the annotator, and rows that name nobody."""
    rows = json.loads((shared_data / "alpaca_eval" / "v2" / "Qwen-14B-Chat" / "annotations.json").read_text())[:40]
    for row in rows[:10]:
        row["annotator"] = "another"
    del rows[10]["annotator"]
    rows[11]["output_2"] = None
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    (figures,) = AlpacaEval2().aggregate(replay(AlpacaEval2(), [path]).verdicts)
    preferences = [row["preference"] for row in rows if row["output_2"] is not None]
    assert figures.values["win_rate"] == pytest.approx(100 * (sum(preferences) / 39 - 1), abs=1e-9)
    assert (figures.n, figures.n_unscored) == (39, 1)
    assert figures.judge == "another, weighted_alpaca_eval_gpt4_turbo"
