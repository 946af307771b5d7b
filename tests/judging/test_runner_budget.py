"""Budgets of requests and of money."""

from __future__ import annotations

import time

import pytest
from fixtures.judge_runs import assert_nothing_invented, make_items, options
from fixtures.judge_server import JudgeServer

from ragalign.errors import ConfigError
from ragalign.judging.budget import Budget
from ragalign.judging.cache import ReplyCache
from ragalign.judging.judges import Judge
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.runner import plan_judge, run_judge


def test_budget_of_requests(cache: ReplyCache) -> None:
    with JudgeServer(fault_rate=0.3, faults=("500",), seed=3) as server:
        judge = Judge("judge", server.base_url)
        limited = options(budget=Budget(max_requests=25), concurrency=8)
        run = run_judge(Ica(), make_items(60), [judge], cache=cache, options=limited)
        assert len(server.log) == 25 == run.spending["judge"].n_requests
        assert_nothing_invented(run, server, "judge")
        scored = [verdict for verdict in run.verdicts if verdict.is_scored]
        assert len(scored) == run.spending["judge"].n_answered == len(cache)
        assert run.reasons == {"budget: the limit of 25 requests is reached": 60 - len(scored)}
        assert run.n_unanswered == 60 - len(scored)

        rest = run_judge(Ica(), make_items(60), [judge], cache=cache, options=options())
        assert all(verdict.is_scored for verdict in rest.verdicts)
        assert all(len(entries) == 1 for entries in server.answered().values())


def test_a_spent_budget_ends_the_waiting_for_retries(cache: ReplyCache) -> None:
    def script(body: dict, _count: int) -> str:
        return "429" if "Question 0?" in body["messages"][-1]["content"] else "ok"

    with JudgeServer(script=script, retry_after_s=60) as server:
        judge, started = Judge("judge", server.base_url), time.monotonic()
        limited = options(budget=Budget(max_requests=5))
        run = run_judge(Ica(), make_items(9), [judge], cache=cache, options=limited)
        assert len(server.log) == 5
    assert time.monotonic() - started < 10
    assert run.reasons == {"budget: the limit of 5 requests is reached": 5}


def test_budget_of_nothing_asks_nothing(cache: ReplyCache) -> None:
    with JudgeServer() as server:
        judge = Judge("judge", server.base_url)
        for budget in (Budget(max_requests=0), Budget(max_cost=0)):
            run = run_judge(Ica(), make_items(5), [judge], cache=cache, options=options(budget=budget))
            assert run.n_unanswered == 5
        assert server.log == []


@pytest.mark.parametrize("concurrency", [1, 16])
def test_budget_of_money_is_never_exceeded(cache: ReplyCache, concurrency: int) -> None:
    with JudgeServer(latency_s=0.005) as server:
        judge = Judge("judge", server.base_url)
        [plan] = plan_judge(Ica(), make_items(40), [judge], cache=cache, options=options())
        assert plan.cost_high is not None
        # All 40 would cost at most cost_high, so a third of it cannot pay for all at most, but for a good many.
        limit = plan.cost_high / 3
        limited = options(budget=Budget(max_cost=limit), concurrency=concurrency)
        run = run_judge(Ica(), make_items(40), [judge], cache=cache, options=limited)
    cost = run.spending["judge"].cost
    assert cost is not None
    assert 0 < cost <= limit
    assert plan.cost_low is not None
    assert run.spending["judge"].n_answered > 10
    if run.n_unanswered:
        assert all("$" in reason for reason in run.reasons)


def test_a_limit_on_cost_needs_prices(cache: ReplyCache) -> None:
    with JudgeServer() as server:
        judge = Judge("nameless", server.base_url)
        with pytest.raises(ConfigError, match="nameless"):
            run_judge(Ica(), make_items(1), [judge], cache=cache, options=options(budget=Budget(max_cost=1)))
        assert server.log == []


def test_plan_foretells_the_run(cache: ReplyCache) -> None:
    items = [*make_items(30), *make_items(5)]  # five are asked twice with the same words
    with JudgeServer() as server:
        judge = Judge("judge", server.base_url)
        run_judge(Ica(), make_items(10), [judge], cache=cache, options=options())
        n_before = len(server.log)
        [plan] = plan_judge(Ica(), items, [judge], cache=cache, options=options())
        assert len(server.log) == n_before
        assert (plan.n_verdicts, plan.n_settled, plan.n_cached, plan.n_requests) == (35, 0, 10, 20)
        run = run_judge(Ica(), items, [judge], cache=cache, options=options())
        assert len(server.log) - n_before == 20
    spent = run.spending["judge"]
    assert spent.n_cached == 10
    assert spent.cost is not None
    assert plan.cost_low is not None
    assert plan.cost_high is not None
    assert spent.cost <= plan.cost_high
    assert spent.usage.n_prompt_tokens <= plan.usage.n_prompt_tokens <= 2 * spent.usage.n_prompt_tokens
    [unpriced] = plan_judge(Ica(), items, [Judge("x", server.base_url)], cache=cache, options=options())
    assert unpriced.cost_high is None
    assert unpriced.to_dict()["cost_low"] is None
    assert len(run.verdicts) == 35
