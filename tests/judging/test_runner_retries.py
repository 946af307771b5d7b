from __future__ import annotations

import asyncio
import random
import selectors
import time
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.judging.budget import Budget, BudgetSpentError, Ledger, Spending, cost_note
from ragalign.judging.limits import TokenWindow
from ragalign.judging.retries import FatalError, FinalError, RetryableError, RetryPolicy, failure, retry_after_s


@given(st.integers(1, 9), st.none() | st.floats(0, 600), st.integers(0, 2**32))
def test_waits_follow_the_policy(attempt: int, asked_s: float | None, seed: int) -> None:
    policy = RetryPolicy(max_attempts=10, base_s=0.5, max_wait_s=60)
    wait_s = policy.wait_s(attempt, asked_s, random.Random(seed))
    assert wait_s is not None
    assert wait_s >= (asked_s or 0)
    assert wait_s <= (min(60, 0.5 * 2 ** (attempt - 1)) if asked_s is None else asked_s + 0.5)


def test_jitter_is_full() -> None:
    policy, generator = RetryPolicy(base_s=1.0, max_wait_s=4.0), random.Random(0)
    waits = [policy.wait_s(9, None, generator) or 0.0 for _ in range(2000)]
    assert min(waits) < 0.05
    assert max(waits) > 3.95
    assert sum(waits) / 2000 == pytest.approx(2.0, abs=0.1)


def test_attempts_end() -> None:
    generator = random.Random(0)
    assert RetryPolicy(max_attempts=3).wait_s(3, None, generator) is None
    assert RetryPolicy(max_attempts=3).wait_s(2, 601, generator) is None
    assert RetryPolicy(max_attempts=10**6).wait_s(10**5, None, generator) is not None
    with pytest.raises(ConfigError):
        RetryPolicy(max_attempts=0)


@given(st.integers(0, 10**6))
def test_retry_after_in_seconds_and_as_a_date(seconds: int) -> None:
    now = 1_700_000_000.0
    assert retry_after_s({"retry-after": str(seconds)}) == seconds
    assert retry_after_s({"retry-after": formatdate(now + seconds, usegmt=True)}, now) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "soon", "nan", "Wed, 99 Foo 2024", "12:30"])
def test_other_retry_after_values_are_ignored(value: str) -> None:
    assert retry_after_s({"retry-after": value}) is None
    assert retry_after_s({}) is None


def test_a_time_in_the_past_is_now() -> None:
    assert retry_after_s({"retry-after": "-5"}) == 0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, time.time()) == 0


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, None, RetryableError),
        (408, None, RetryableError),
        (500, {"error": {"message": "x"}}, RetryableError),
        (503, {"error": "x"}, RetryableError),
        (529, [], RetryableError),
        (400, {"error": {"message": "too long", "code": "context_length_exceeded"}}, FinalError),
        (403, {"message": "no"}, FinalError),
        (422, {"detail": "x"}, FinalError),
        (401, {"error": {"message": "x"}}, FatalError),
        (402, None, FatalError),
        (404, {"error": {"message": "The model does not exist", "code": "model_not_found"}}, FatalError),
        (308, None, FatalError),
        (429, {"error": {"code": "insufficient_quota"}}, FatalError),
        (400, {"error": {"type": "invalid_api_key"}}, FatalError),
    ],
)
def test_what_an_error_means(status: int, body: Any, kind: type[Exception]) -> None:
    error = failure(status, body, {"retry-after": "3"})
    assert type(error) is kind
    assert f"HTTP {status}" in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["error", "message", "code", "type", "x"]), inner), max_leaves=8)  # fmt: skip


@given(st.integers(300, 599), json_values)
def test_any_body_has_a_reason_of_one_short_line(status: int, body: Any) -> None:
    reason = failure(status, body, {}).reason
    assert "\n" not in reason
    assert len(reason) < 250


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self.now = 0.0
        real_select = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> Any:
            events = real_select(0)
            if not events and timeout is not None:
                # As on a real clock, some time always passes: a timer that fires a little early is set again.
                self.now += max(timeout, 1e-9)
            return events

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now


def run_skipping(main: Any) -> Any:
    loop = SkippingLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 150), st.integers(0, 150), st.floats(0, 40)), min_size=1, max_size=30),
    st.integers(50, 300),
)
def test_no_minute_holds_more_tokens_than_allowed(requests: list[tuple[int, int, float]], limit: int) -> None:
    passed: list[tuple[float, int]] = []

    async def main(loop: SkippingLoop) -> None:
        window = TokenWindow(limit, clock=loop.time)

        async def one(guessed: int, used: int, seconds: float) -> None:
            grant = await window.acquire(guessed)
            at = loop.time()
            passed.append((at, used := min(used, guessed)))
            await asyncio.sleep(seconds)
            window.correct(grant, used)

        await asyncio.gather(*(one(*request) for request in requests))

    run_skipping(main)
    assert len(passed) == len(requests)
    for start, first in passed:
        inside = [tokens for at, tokens in passed if start <= at < start + 60 - 1e-6]
        # A request above the limit passes when nothing else is in the window.
        assert sum(inside) <= limit or first > limit


def test_tokens_that_were_not_used_free_the_window_at_once() -> None:
    async def main(loop: SkippingLoop) -> float:
        window = TokenWindow(100, clock=loop.time)
        grant = await window.acquire(90)
        loop.call_later(2.0, window.correct, grant, 10)
        await window.acquire(90)
        return loop.time()

    assert run_skipping(main) == pytest.approx(2.0)


def test_the_window_is_first_come_first_served() -> None:
    async def main(loop: SkippingLoop) -> list[str]:
        window, order = TokenWindow(100, clock=loop.time), []

        async def one(name: str, tokens: int) -> None:
            await window.acquire(tokens)
            order.append(name)

        await asyncio.gather(one("first", 60), one("large", 90), one("small", 10))
        return order

    assert run_skipping(main) == ["first", "large", "small"]


def test_no_limit_does_not_wait() -> None:
    async def main(loop: SkippingLoop) -> float:
        window = TokenWindow(None, clock=loop.time)
        for _ in range(100):
            window.correct(await window.acquire(10**9), 5)
        return loop.time()

    assert run_skipping(main) < 1e-6
    with pytest.raises(ConfigError):
        TokenWindow(0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 2), st.floats(0, 1), st.floats(0, 5)), min_size=1, max_size=20),
    st.floats(0.1, 10),
    st.integers(1, 25),
)
def test_concurrent_requests_never_exceed_the_budget(
    requests: list[tuple[float, float, float]], max_cost: float, max_requests: int
) -> None:
    async def main(_loop: SkippingLoop) -> tuple[int, float, int]:
        ledger, n_sent, spent, n_refused = Ledger(Budget(max_requests, max_cost)), 0, 0.0, 0

        async def one(at_most: float, share: float, seconds: float) -> None:
            nonlocal n_sent, spent, n_refused
            try:
                await ledger.reserve(at_most)
            except BudgetSpentError:
                n_refused += 1
                return
            n_sent += 1
            await asyncio.sleep(seconds)
            spent += at_most * share
            ledger.settle(at_most, at_most * share)

        await asyncio.gather(*(one(*request) for request in requests))
        if n_refused:
            with pytest.raises(BudgetSpentError):
                await ledger.reserve(0.0)
            with pytest.raises(BudgetSpentError):
                await ledger.sleep(60)
        return n_sent, spent, n_refused

    n_sent, spent, n_refused = run_skipping(main)
    assert n_sent + n_refused == len(requests)
    assert n_sent <= max_requests
    assert spent <= max_cost * (1 + 1e-9)


def test_budgets_out_of_range() -> None:
    for wrong in ({"max_requests": -1}, {"max_cost": -0.5}, {"max_cost": float("nan")}, {"max_cost": float("inf")}):
        with pytest.raises(ConfigError):
            Budget(**wrong)  # type: ignore[arg-type]


def test_cost_in_words() -> None:
    assert cost_note({"a": Spending(cost=0.5), "b": Spending(cost=0.25)}) == "$0.7500"
    assert cost_note({"a": Spending(cost=0.5), "b": Spending(cost=None)}).startswith("$0.5000 + unknown for b")
    assert cost_note({"b": Spending(cost=None)}).startswith("unknown for b")
