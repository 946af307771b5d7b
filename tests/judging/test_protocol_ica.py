from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.judged import HOSTILE, ask, make_item, reply, summary
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError, DataError
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item

PUBLISHED = {  # wins, draws, losses as published with the recorded judgements
    "llama2base-13B_zeroshot_vs_davinci003_autoeval": (171, 5, 1324),
    "llama2-13B_icl-oasstgpt_vs_davinci003_autoeval": (1176, 73, 251),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recorded_judgements_give_the_published_counts(shared_data: Path, name: str) -> None:
    replayed = replay(Ica(), [shared_data / "ica" / f"{name}.jsonl"])
    (figures,) = Ica().aggregate(replayed.verdicts)
    values = figures.values
    assert (values["win"], values["draw"], values["lose"]) == PUBLISHED[name]
    assert (figures.n, figures.n_unscored) == (1500, 0)
    assert values["win_rate"] == pytest.approx(100 * PUBLISHED[name][0] / 1500, abs=1e-12)
    assert f"{figures.model}_vs_{figures.baseline}_autoeval" == name


@pytest.mark.parametrize(
    ("name", "n", "share"),
    [
        ("llama2-13B_icl-random-oasstgpt_vs_davinci003_autoeval", 1500, 62.87),
        ("llama2-13B_icl-oasstgpt_vs_chatgpt_autoeval", 300, 16.33),
    ],
)
def test_recorded_judgements_give_the_published_shares(shared_data: Path, name: str, n: int, share: float) -> None:
    (figures,) = Ica().aggregate(replay(Ica(), [shared_data / "ica" / f"{name}.jsonl"]).verdicts)
    assert figures.n == n
    assert round(figures.values["win_rate"], 2) == share


def test_average_scores_are_those_of_the_first_lines(shared_data: Path) -> None:
    path = shared_data / "ica" / "llama2-13B_icl-oasstgpt_vs_davinci003_autoeval.jsonl"
    texts = [text for row in path.read_text().splitlines() for text in json.loads(row)["autoeval_text_list"]]
    first = [float(text.split("\n")[0].split(" ")[0]) for text in texts]
    (figures,) = Ica().aggregate(replay(Ica(), [path]).verdicts)
    assert figures.values["avg_score_model"] == pytest.approx(sum(first) / len(first), abs=1e-12)


def test_strict_refuses_a_score_off_the_scale(shared_data: Path) -> None:
    path = shared_data / "ica" / "llama2-13B_icl-random-oasstgpt_vs_davinci003_autoeval.jsonl"
    (figures,) = Ica().aggregate(replay(Ica(strict=True), [path]).verdicts)
    assert figures.reasons == {"the first score 0 is not between 1 and 10": 1}
    assert figures.n == 1499


@pytest.mark.parametrize(
    ("text", "preference"),
    [("8 9\nwhy", 0.0), ("9 8.5", 1.0), ("7 7\n", 0.5), ("9 8 and more", 1.0), ("1e1 2", 1.0)],
)
def test_reads_the_first_line_as_upstream(text: str, preference: float) -> None:
    (request,) = Ica().build(make_item())
    assert Ica().parse(request, reply(text)).preference == preference


@pytest.mark.parametrize("text", ["", " \n", "8", "Scores: 8 9", "8, 9", "8\n9", "nan 3", "inf 3", " 8 9", "8  9"])
def test_what_upstream_cannot_read_is_unscored_with_a_reason(text: str) -> None:
    (request,) = Ica().build(make_item())
    verdict = Ica().parse(request, reply(text))
    assert not verdict.is_scored
    assert verdict.reason
    assert verdict.preference is None


def test_the_model_stands_first_and_hostile_text_stays() -> None:
    item = Item("1", ("Why?",), Answer("m", (HOSTILE,)), Answer("b", ("plain",)))
    (request,) = Ica().build(item)
    text = request.messages[-1].content
    assert text.count(HOSTILE) == 1
    assert text.index(HOSTILE) < text.index("plain")
    assert (request.parameters.temperature, request.parameters.max_tokens) == (0.2, 500)


def test_both_orders_average_the_scores() -> None:
    protocol = Ica(both_orders=True)
    first, second = protocol.build(make_item())
    assert first.messages != second.messages
    # The judge likes the first answer by two points, and the model by one.
    verdicts = [protocol.parse(first, reply("9 6")), protocol.parse(second, reply("7 8"))]
    (figures,) = protocol.aggregate(verdicts)
    assert (figures.n, figures.values["win"]) == (1, 1)
    assert (figures.values["avg_score_model"], figures.values["avg_score_baseline"]) == (8.5, 6.5)


def test_one_unscored_order_unscores_the_comparison() -> None:
    protocol = Ica(both_orders=True)
    first, second = protocol.build(make_item())
    (figures,) = protocol.aggregate([protocol.parse(first, reply("9 6")), protocol.parse(second, reply("?"))])
    assert (figures.n, figures.n_unscored) == (0, 1)
    assert figures.values["win_rate"] is None


def test_records_read_back_as_the_same_verdicts(tmp_path: Path) -> None:
    protocol = Ica()
    scripted = ["8 9\nwhy", "9 2", "5 5\n"]
    judgements = [ask(protocol, protocol.build(make_item(i))[0], reply(text)) for i, text in enumerate(scripted)]
    rows = protocol.record(judgements)
    path = tmp_path / "model_vs_base_autoeval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [summary(v) for v in replay(protocol, [path]).verdicts] == [summary(one.verdict) for one in judgements]


def test_a_baseline_is_needed() -> None:
    with pytest.raises(DataError, match="no baseline answer"):
        Ica().build(make_item(baseline=None))


def test_a_prompt_file_must_show_both_answers(tmp_path: Path) -> None:
    path = tmp_path / "prompt.jsonl"
    path.write_text(json.dumps({"system_prompt": "s", "prompt_template": "{question} {answer_1} {prompt}"}))
    with pytest.raises(ConfigError, match="answer_2"):
        Ica(prompt_file=path)


def test_a_prompt_files_defaults_are_filled_in(tmp_path: Path) -> None:
    row = {
        "system_prompt": "sys",
        "prompt_template": "{question}|{answer_1}|{answer_2}|{prompt}",
        "defaults": {"prompt": "Rate {both}."},
    }
    path = tmp_path / "prompt.jsonl"
    path.write_text(json.dumps(row))
    (request,) = Ica(prompt_file=path).build(make_item())
    assert request.messages[0].content == "sys"
    assert request.messages[1].content == "Question 0, turn 1?|ours 0.1|theirs 0.1|Rate {both}."


@given(st.text())
def test_any_reply_is_scored_or_has_a_reason(text: str) -> None:
    protocol = Ica()
    verdict = protocol.parse(protocol.build(make_item())[0], reply(text))
    assert verdict.is_scored == (verdict.reason is None)
    assert verdict.raw == text
