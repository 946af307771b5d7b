"""Every protocol end to end: asked, written in upstream's form, read again, and averaged to the same figures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.judge_server import JudgeServer

from ragalign.errors import DataError
from ragalign.judging.answer_files import FORM_OF
from ragalign.judging.budget import Budget
from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import Judge
from ragalign.judging.output import VERDICTS, read_verdicts, write_run
from ragalign.judging.pricing import Price, PriceTable
from ragalign.judging.registry import make_protocol
from ragalign.judging.replay import replay
from ragalign.judging.requests import Answer, Item
from ragalign.judging.runner import run_judge
from ragalign.judging.runs import RunOptions

ASPECTS = ("helpfulness", "clarity", "factuality", "depth", "engagement", "safety")
PRICES = PriceTable({"org/judge": Price(1.0, 2.0)})


def reply(protocol: str, body: dict[str, Any]) -> str:
    """What a judge of this protocol says; the decision depends on the request alone."""
    number = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()[0]
    score = number % 10 + 1
    scores = {aspect: {"reason": "so", "score": str(number % 5 + 1)} for aspect in ASPECTS}
    choices = dict.fromkeys(ASPECTS, ("A", "B", "tie")[number % 3])
    ranks = [{"model": "model_1", "rank": number % 2 + 1}, {"model": "model_2", "rank": 2 - number % 2}]
    return {
        "ica": f"{score} 5\nBecause.",
        "alpaca-eval-1": str(ranks),
        "alpaca-eval-2": "M",
        "mt-bench": f"Fine. [[{score}]]",
        "mt-bench-pairwise": f"So: [[{'ABC'[number % 3]}]]",
        "just-eval": json.dumps(scores),
        "urial-pairwise": json.dumps({"rationale": "so", "choices": choices}),
        "arena-hard": f"So: [[{('A>>B', 'A>B', 'A=B', 'B>A', 'B>>A')[number % 5]}]]",
    }[protocol]


def items() -> list[Item]:
    return [
        Item(
            str(i),
            (f"Question {i}?", f"And then {i}?"),
            Answer("ours", (f"Our answer {i}.", f"Our second answer {i}.")),
            Answer("theirs", (f"Another answer {i}.", f"Another second answer {i}.")),
            category="writing",
            metadata={"dataset": "made", "position": i},
        )
        for i in range(12)
    ]


@pytest.mark.parametrize("max_requests", [None, 5])
@pytest.mark.parametrize("name", FORM_OF)
def test_written_files_average_to_the_same_figures(tmp_path: Path, name: str, max_requests: int | None) -> None:
    protocol = make_protocol(name)
    options = RunOptions(prices=PRICES, budget=Budget(max_requests=max_requests))
    with JudgeServer(text=lambda body: reply(name, body)) as server, ReplyCache(None) as cache:
        run = run_judge(protocol, items(), [Judge("org/judge", server.base_url)], cache=cache, options=options)
    assert run.n_unanswered == (0 if max_requests is None else len(run.verdicts) - 5)
    assert sum(verdict.is_scored for verdict in run.verdicts) == (max_requests or len(run.verdicts))
    verdicts_path, upstream_path = write_run(tmp_path, protocol, run.judgements, PRICES)
    assert verdicts_path == tmp_path / VERDICTS
    assert read_verdicts(verdicts_path) == run.verdicts
    assert upstream_path.is_relative_to(tmp_path)
    assert "org_" in str(upstream_path)

    direct = protocol.aggregate(run.verdicts)
    read_again = protocol.aggregate(replay(protocol, [upstream_path]).verdicts)
    assert [figures.model for figures in read_again] == [figures.model for figures in direct]
    for one, other in zip(direct, read_again, strict=True):
        for key, value in one.values.items():
            if key != "categories":  # MT-Bench's files do not hold them
                assert other.values[key] == pytest.approx(value), key
        assert other.n == one.n > 0
        assert other.n_unscored == one.n_unscored


def test_costs_stand_beside_verdicts(tmp_path: Path) -> None:
    protocol = make_protocol("ica")
    with JudgeServer() as server, ReplyCache(None) as cache:
        run = run_judge(
            protocol, items(), [Judge("org/judge", server.base_url)], cache=cache, options=RunOptions(prices=PRICES)
        )
    write_run(tmp_path, protocol, run.judgements, PRICES)
    rows = [json.loads(line) for line in (tmp_path / VERDICTS).read_text().splitlines()]
    assert sum(row["cost"] for row in rows) == pytest.approx(run.spending["org/judge"].cost)


@pytest.mark.parametrize("line", ["[1]", "{", '{"id": "x"}', '{"id": "x", "item_id": "1", "protocol": "ica"}'])
def test_other_files_are_no_verdicts(tmp_path: Path, line: str) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(line)
    with pytest.raises(DataError, match=r"verdicts\.jsonl"):
        read_verdicts(path)


def test_odd_names_stay_inside_the_folder(tmp_path: Path) -> None:
    protocol = make_protocol("ica")
    with JudgeServer() as server, ReplyCache(None) as cache:
        odd = [Item("1", ("Q?",), Answer("../../up", ("A",)), Answer("..", ("B",)))]
        run = run_judge(protocol, odd, [Judge("a/../../b", server.base_url)], cache=cache)
    for path in write_run(tmp_path, protocol, run.judgements, PRICES):
        assert path.resolve().is_relative_to(tmp_path.resolve())
