from __future__ import annotations

import math
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from fixtures.judge_runs import assert_nothing_invented, make_items, options
from fixtures.judge_server import ANSWERED, BAD_ANSWERS, FAILURES, JudgeServer, good_text, request_key

from ragalign.errors import ConfigError, DataError, JudgeError
from ragalign.judging.cache import ReplyCache, reply_key
from ragalign.judging.judges import Judge
from ragalign.judging.protocols.alpaca_eval import AlpacaEval2
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.requests import Answer, Item
from ragalign.judging.retries import RetryPolicy
from ragalign.judging.runner import run_judge


@pytest.mark.parametrize("seed", [1, 2])
def test_a_bad_night(cache: ReplyCache, seed: int) -> None:
    items, judges = make_items(150), ["judge", "other"]
    with JudgeServer(fault_rate=0.3, seed=seed, hang_s=2.0, retry_after_s=0.05) as server:
        asked = [Judge(name, server.base_url) for name in judges]
        # Far from the time that a good reply takes, also on a busy machine.
        run = run_judge(Ica(), items, asked, cache=cache, options=options(timeout_s=1.0))
        for name in judges:
            assert_nothing_invented(run, server, name)
        kinds = Counter(entry.kind for entry in server.log)
        assert all(kinds[kind] for kind in FAILURES + BAD_ANSWERS), "the night was not bad enough"
        assert [verdict.item_id for verdict in run.verdicts] == [item.id for item in items] * 2
        # Whatever passes was retried until it passed: only answers without a score remain unscored.
        assert run.n_unanswered == 0
        bad = sum(kinds[kind] for kind in BAD_ANSWERS)
        assert sum(run.reasons.values()) == bad
        assert len(run.verdicts) - bad == kinds["ok"]
        assert sum(one.n_requests for one in run.spending.values()) == len(server.log)
        assert sum(one.n_answered for one in run.spending.values()) == sum(kinds[kind] for kind in ANSWERED)

        n_before = len(server.log)
        again = run_judge(Ica(), items, asked, cache=cache, options=options())
        assert len(server.log) == n_before
        assert again.verdicts == run.verdicts
        assert again.spending["judge"].n_cached == 150


def test_reasons_say_what_happened(cache: ReplyCache) -> None:
    kinds = ["empty", "refusal", "wrong_format", "400", "500", "truncated", "drop", "no_choices", "timeout"]

    def script(body: dict, _count: int) -> str:
        number = next(i for i in range(len(kinds)) if f"Question {i}?" in body["messages"][-1]["content"])
        return kinds[number]

    with JudgeServer(script=script, hang_s=1.2) as server:
        policy = RetryPolicy(max_attempts=2, base_s=0.01)
        judge = Judge("judge", server.base_url)
        run = run_judge(Ica(), make_items(9), [judge], cache=cache, options=options(retry=policy, timeout_s=0.6))
        counts = Counter(entry.kind for entry in server.log)
    expected = [
        "the judge's reply is empty",
        "the judge refused: I cannot judge this.",
        "the first score is not a number",
        "HTTP 400: scripted 400",
        "HTTP 500 (given up after 2 attempts)",
        "the reply is not a complete JSON object (given up after 2 attempts)",
        "the connection failed (RemoteProtocolError) (given up after 2 attempts)",
        "the reply has no message (given up after 2 attempts)",
        "no reply within 0.6 s (given up after 2 attempts)",
    ]
    for verdict, reason in zip(run.verdicts, expected, strict=True):
        assert verdict.reason is not None
        assert verdict.reason.startswith(reason)
    # Answers and final refusals are asked once, failures twice.
    assert [counts[kind] for kind in kinds] == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert len(cache) == 3


def test_tokens_and_cost_are_booked_although_nothing_can_be_read(cache: ReplyCache) -> None:
    with JudgeServer(script=lambda *_: "wrong_format") as server:
        run = run_judge(Ica(), make_items(3), [Judge("judge", server.base_url)], cache=cache, options=options())
    usages = [verdict.usage for verdict in run.verdicts]
    assert all(usage is not None and usage.n_prompt_tokens > 50 for usage in usages)
    spent = run.spending["judge"]
    assert spent.usage.n_prompt_tokens == sum(usage.n_prompt_tokens for usage in usages if usage)
    assert spent.cost == pytest.approx((spent.usage.n_prompt_tokens * 1000 + spent.usage.n_output_tokens * 2000) / 1e6)
    assert not any(verdict.is_scored for verdict in run.verdicts)


def test_unknown_cost_is_none_and_not_zero(cache: ReplyCache, tmp_path: Path) -> None:
    with JudgeServer(usage=False) as server, ReplyCache(None) as memory:
        priced = run_judge(Ica(), make_items(2), [Judge("judge", server.base_url)], cache=cache, options=options())
        unpriced = run_judge(Ica(), make_items(2), [Judge("x", server.base_url)], cache=memory, options=options())
    assert priced.spending["judge"].cost is None
    assert priced.spending["judge"].n_without_usage == 2
    assert unpriced.spending["x"].cost is None
    assert priced.verdicts[0].usage is None


def test_unreadable_replies_are_asked_again_as_often_as_told(cache: ReplyCache) -> None:
    script = ["wrong_format", "empty", "ok", "ok"]
    with JudgeServer(script=lambda _body, count: script[count]) as server:
        judge = Judge("judge", server.base_url)
        once = run_judge(Ica(), make_items(1), [judge], cache=cache, options=options())
        assert not once.verdicts[0].is_scored
        more = run_judge(Ica(), make_items(1), [judge], cache=cache, options=options(tries=3))
        [verdict] = more.verdicts
        assert verdict.is_scored
        assert verdict.raw == server.log[2].text
        assert len(server.log) == 3
        [request] = Ica().build(make_items(1)[0])
        replies = cache.get(reply_key("judge", request.as_body()))
        assert [reply.text for reply in replies] == [entry.text for entry in server.log]
        # All three were paid for.
        assert verdict.usage is not None
        assert verdict.usage.n_prompt_tokens == sum(reply.usage.n_prompt_tokens for reply in replies if reply.usage)
        run_judge(Ica(), make_items(1), [judge], cache=cache, options=options(tries=9))
        assert len(server.log) == 3


@pytest.mark.parametrize("kind", ["429", "429_date"])
def test_retry_after_is_honoured(cache: ReplyCache, kind: str) -> None:
    # A date has whole seconds, so 1.6 s ahead is at least 0.6 s away.
    wait_s, least_s = (1.6, 0.6) if kind == "429_date" else (0.7, 0.7)
    with JudgeServer(script=lambda _body, count: "ok" if count else kind, retry_after_s=wait_s) as server:
        run = run_judge(Ica(), make_items(1), [Judge("judge", server.base_url)], cache=cache, options=options())
        first, second = server.log
    assert run.verdicts[0].is_scored
    assert second.at - first.at >= least_s - 0.02


def test_an_endless_retry_after_ends_the_attempts(cache: ReplyCache) -> None:
    with JudgeServer(script=lambda *_: "429", retry_after_s=7200) as server:
        started = time.monotonic()
        run = run_judge(Ica(), make_items(1), [Judge("judge", server.base_url)], cache=cache, options=options())
    assert time.monotonic() - started < 5
    assert run.verdicts[0].reason == "HTTP 429 (given up after 1 attempt)"
    assert run.n_unanswered == 1


def test_a_waiting_retry_holds_up_no_other_question(cache: ReplyCache) -> None:
    def script(body: dict, count: int) -> str:
        return "429" if "Question 0?" in body["messages"][-1]["content"] and count == 0 else "ok"

    with JudgeServer(script=script, retry_after_s=0.8) as server:
        judge = Judge("judge", server.base_url)
        run_judge(Ica(), make_items(20), [judge], cache=cache, options=options(concurrency=1))
    assert "Question 0?" in server.log[0].body["messages"][-1]["content"]
    assert "Question 0?" in server.log[-1].body["messages"][-1]["content"]
    assert max(entry.n_in_flight for entry in server.log) == 1


def test_no_more_in_flight_than_allowed(cache: ReplyCache) -> None:
    with JudgeServer(latency_s=0.02) as server:
        judge = Judge("judge", server.base_url)
        run_judge(Ica(), make_items(60), [judge], cache=cache, options=options(concurrency=7))
    assert max(entry.n_in_flight for entry in server.log) == 7


def test_a_wrong_key_stops_the_judge_but_not_the_other(cache: ReplyCache) -> None:
    def script(body: dict, _count: int) -> str:
        return "401" if body["model"] == "locked" else "ok"

    with JudgeServer(script=script) as server:
        judges = [Judge("locked", server.base_url), Judge("open", server.base_url)]
        run = run_judge(Ica(), make_items(40), judges, cache=cache, options=options(concurrency=2))
        n_locked = sum(entry.kind == "401" for entry in server.log)
    assert 3 <= n_locked <= 3 + 2 * 2
    assert "HTTP 401: wrong key" in run.stopped["locked"]
    assert "open" not in run.stopped
    assert sum(verdict.is_scored for verdict in run.verdicts) == 40
    assert run.n_unanswered == 40


def test_an_exhausted_account_is_not_retried(cache: ReplyCache) -> None:
    with JudgeServer(script=lambda *_: "quota") as server:
        run = run_judge(Ica(), make_items(1), [Judge("judge", server.base_url)], cache=cache, options=options())
        assert len(server.log) == 1
    assert run.verdicts[0].reason == "HTTP 429: pay first"


def test_a_dead_endpoint_is_given_up_soon(cache: ReplyCache) -> None:
    with JudgeServer() as server:
        address = server.base_url
    started = time.monotonic()
    run = run_judge(Ica(), make_items(500), [Judge("judge", address)], cache=cache, options=options())
    assert time.monotonic() - started < 10
    assert run.n_unanswered == 500
    assert "ConnectError" in run.stopped["judge"]


def test_a_judge_that_dies_midway_keeps_what_it_said(cache: ReplyCache) -> None:
    with JudgeServer() as server:
        judge, n_alive = Judge("judge", server.base_url), 30
        alive = run_judge(Ica(), make_items(n_alive), [judge], cache=cache, options=options())
    run = run_judge(Ica(), make_items(60), [judge], cache=cache, options=options(retry=RetryPolicy(2, 0.01)))
    assert run.verdicts[:n_alive] == alive.verdicts
    assert run.n_unanswered == 30


def test_both_orders_are_two_questions(cache: ReplyCache) -> None:
    with JudgeServer() as server:
        run = run_judge(
            Ica(both_orders=True), make_items(4), [Judge("judge", server.base_url)], cache=cache, options=options()
        )
        assert len(server.log) == 8
    assert [verdict.swapped for verdict in run.verdicts] == [False, True] * 4


def test_settled_items_need_no_judge(cache: ReplyCache) -> None:
    same = Item("1", ("Q?",), Answer("ours", ("same",)), Answer("theirs", ("same",)))
    with JudgeServer() as server:
        judges = [Judge("one", server.base_url), Judge("two", server.base_url)]
        run = run_judge(AlpacaEval2(), [same], judges, cache=cache, options=options())
        assert server.log == []
    assert [(verdict.judge, verdict.preference) for verdict in run.verdicts] == [("one", 0.5), ("two", 0.5)]
    assert run.judgements[0].request is None


def test_items_the_protocol_cannot_use_are_refused_before_anything_is_asked(cache: ReplyCache) -> None:
    alone = Item("7", ("Q?",), Answer("ours", ("A",)))
    with JudgeServer() as server:
        with pytest.raises(DataError, match="'7'"):
            run_judge(Ica(), [*make_items(3), alone], [Judge("j", server.base_url)], cache=cache, options=options())
        assert server.log == []


def test_nothing_to_do(cache: ReplyCache) -> None:
    run = run_judge(Ica(), [], [Judge("judge", "http://127.0.0.1:9")], cache=cache, options=options())
    assert run.verdicts == []
    assert run.spending["judge"].cost == 0


def test_a_cache_that_cannot_be_written_is_an_error_and_no_traceback_of_groups(cache: ReplyCache) -> None:
    class Full(ReplyCache):
        def put(self, key: str, reply: object) -> None:
            self.close()
            super().put(key, reply)  # type: ignore[arg-type]

    with JudgeServer() as server, pytest.raises(JudgeError, match="replies cannot be stored"):
        run_judge(Ica(), make_items(50), [Judge("j", server.base_url)], cache=Full(None), options=options())


def test_surrogates_and_odd_text_survive(cache: ReplyCache) -> None:
    odd = "5 4\nlone \udc00 half, 漢字, \x00, {} and \\ud800"
    with JudgeServer(text=lambda _: odd) as server:
        judge = Judge("judge", server.base_url)
        run = run_judge(Ica(), make_items(1), [judge], cache=cache, options=options())
        again = run_judge(Ica(), make_items(1), [judge], cache=cache, options=options())
    assert run.verdicts[0].raw == odd.replace("\udc00", "\ufffd")
    assert run.verdicts == again.verdicts
    run.verdicts[0].raw.encode()


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"tries": 0}, {"timeout_s": 0}, {"timeout_s": math.nan}, {"tokens_per_minute": 0}]
)
def test_options_out_of_range(cache: ReplyCache, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        run_judge(Ica(), [], [Judge("j", "http://127.0.0.1:9")], cache=cache, options=options(**wrong))


def test_judges_must_differ_by_name(cache: ReplyCache) -> None:
    twice = [Judge("j", "http://127.0.0.1:9"), Judge("j", "http://127.0.0.1:8")]
    for judges in ([], twice):
        with pytest.raises(ConfigError):
            run_judge(Ica(), [], judges, cache=cache, options=options())


def test_the_server_answers_what_it_logs() -> None:
    # The oracle itself: the same request always gets the same scores, another one others.
    bodies = [{"model": "m", "messages": [{"role": "user", "content": str(i)}]} for i in range(200)]
    texts = [good_text(body) for body in bodies]
    assert texts == [good_text(body) for body in bodies]
    assert len({text.split("\n")[0] for text in texts}) > 50
    random.Random(0).shuffle(bodies)
    assert len({request_key(body) for body in bodies}) == 200
