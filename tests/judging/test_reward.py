"""Reward models as judges, with a small random one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fixtures.reward_model import build_reward_model

from ragalign.errors import ConfigError, DataError
from ragalign.judging.budget import Budget
from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import Judge, RewardJudge, parse_judge
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.protocols.reward import Reward, RewardPairwise
from ragalign.judging.requests import Answer, Item, JudgeReply
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import JudgeRun, RunOptions
from ragalign.tokenization import Tokenizer


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reward_model(tmp_path_factory.mktemp("reward") / "tiny-reward", tiny_model)


def item(name: str, answer: str, baseline: str | None = None) -> Item:
    other = None if baseline is None else Answer("base", (baseline,))
    return Item(name, ("Name a river.",), Answer("model", (answer,)), other)


ITEMS = [
    item("1", "The Nile.", "No."),
    item("2", "The Nile.", "The Nile."),
    item("3", "A lake is no river at all.", "It is the Volga, which is long."),
]


def run(model: Path, protocol: Reward, items: list[Item], folder: Path, **budget: int) -> JudgeRun:
    options = RunOptions(budget=Budget(**budget))
    with ReplyCache(folder / "replies.sqlite") as cache:
        return run_judge(protocol, items, [RewardJudge(str(model))], cache=cache, options=options)


def expected(folder: Path, text: str) -> float:
    """The reward by transformers itself."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": text}]
    with torch.inference_mode():
        return float(model(**tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)).logits)


def test_rewards_are_the_models(reward_model: Path, tmp_path: Path) -> None:
    done = run(reward_model, Reward(), ITEMS, tmp_path)
    assert [verdict.scores["score"] for verdict in done.verdicts] == pytest.approx(
        [expected(reward_model, one.answer.text) for one in ITEMS], abs=1e-5
    )
    [figures] = Reward().aggregate(done.verdicts)
    assert figures.values["avg_reward"] == pytest.approx(sum(v.scores["score"] for v in done.verdicts) / 3)
    assert (figures.n, figures.n_unscored, figures.judge) == (3, 0, f"reward:{reward_model}")
    assert done.spending[f"reward:{reward_model}"].cost == 0


def test_the_higher_reward_wins_and_equal_answers_draw(reward_model: Path, tmp_path: Path) -> None:
    done = run(reward_model, RewardPairwise(), ITEMS, tmp_path)
    for verdict, one in zip(done.verdicts, ITEMS, strict=True):
        assert one.baseline is not None
        first, second = expected(reward_model, one.answer.text), expected(reward_model, one.baseline.text)
        assert verdict.preference == (0.5 if one.id == "2" else float(first > second))
    [figures] = RewardPairwise().aggregate(done.verdicts)
    assert figures.values["draw_rate"] == pytest.approx(100 / 3)
    assert sum(figures.values[f"{name}_rate"] for name in ("win", "draw", "lose")) == pytest.approx(100)


def test_a_run_resumes_from_its_cache(reward_model: Path, tmp_path: Path) -> None:
    part = run(reward_model, Reward(), ITEMS, tmp_path, max_requests=1)
    assert part.n_unanswered == 1, "two of the three answers are equal"
    done = run(reward_model, Reward(), ITEMS, tmp_path)
    assert done.n_unanswered == 0
    again = run(reward_model, Reward(), ITEMS, tmp_path)
    assert again.verdicts == done.verdicts
    assert again.spending[f"reward:{reward_model}"].n_requests == 0


def test_what_the_model_cannot_read_is_unscored(reward_model: Path, tmp_path: Path) -> None:
    done = run(reward_model, Reward(), [item("long", "word " * 5000), ITEMS[0]], tmp_path)
    assert [verdict.is_scored for verdict in done.verdicts] == [False, True]
    assert "the reward model reads 2,048" in str(done.verdicts[0].reason)


def test_without_a_chat_form_question_and_answer_are_a_pair(reward_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "pairs"
    folder.mkdir()
    for path in reward_model.iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).write_bytes(path.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not tokenizer.chat_template
    done = run(folder, Reward(), ITEMS[:1], tmp_path)
    [verdict] = done.verdicts
    n_tokens = len(tokenizer("Name a river.", "The Nile.")["input_ids"])
    assert verdict.usage is not None
    assert verdict.usage.n_prompt_tokens == n_tokens
    assert Tokenizer.load(folder)


def test_models_that_are_none(reward_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model folder"):
        RewardJudge(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="cannot load the reward model"):
        run(tmp_path / "empty", Reward(), ITEMS, tmp_path)


def test_reward_models_and_words_do_not_go_together(reward_model: Path, tmp_path: Path) -> None:
    assert parse_judge(f"reward:{reward_model}") == RewardJudge(str(reward_model))
    assert parse_judge("gpt-4.1@http://localhost:1/v1") == Judge("gpt-4.1", "http://localhost:1/v1")
    with ReplyCache(tmp_path / "replies.sqlite") as cache:
        for protocol, judge in ((Ica(), RewardJudge(str(reward_model))), (Reward(), Judge("m", "http://localhost:1"))):
            with pytest.raises(ConfigError, match="cannot ask"):
                run_judge(protocol, ITEMS, [judge], cache=cache)


@pytest.mark.parametrize("text", ["", "no", "[1, 2]", "{}", '["a"]', "[NaN]", "[Infinity]"])
def test_replies_without_a_reward_are_unscored(text: str) -> None:
    [request] = Reward().build(ITEMS[0])
    assert not Reward().parse(request, JudgeReply.from_text(text)).is_scored
    assert math.isclose(Reward().parse(request, JudgeReply.from_text("[1.5]")).scores["score"], 1.5)


def test_pairs_need_a_baseline_and_one_turn() -> None:
    with pytest.raises(DataError, match="no baseline"):
        RewardPairwise().build(item("1", "a"))
    talk = Item("1", ("a", "b"), Answer("m", ("c", "d")), Answer("n", ("e", "f")))
    with pytest.raises(DataError, match="several turns"):
        RewardPairwise().build(talk)
    [request] = Reward().build(talk)
    assert [turn.role for turn in request.messages] == ["user", "assistant", "user", "assistant"]
