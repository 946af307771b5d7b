"""Asks judges about many items: concurrent, resumable and within a budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import Any

from ragalign._progress import progress
from ragalign.errors import ConfigError
from ragalign.judging.base import Protocol
from ragalign.judging.budget import BudgetSpentError, Ledger, Spending
from ragalign.judging.cache import ReplyCache
from ragalign.judging.client import ChatClient
from ragalign.judging.judges import AnyJudge, RewardJudge, check_judges
from ragalign.judging.limits import TokenWindow
from ragalign.judging.pricing import Price, Quote, guess_usage
from ragalign.judging.questions import JudgeQuestion, Work
from ragalign.judging.requests import Item, JudgeUsage
from ragalign.judging.retries import FinalError, RequestError
from ragalign.judging.reward import LocalRewardModels, RewardClient, RewardModels
from ragalign.judging.runs import JudgePlan, JudgeRun, RunOptions

# Stop asking a judge after this many consecutive failed questions.
_FAILURES_TO_STOP = 3


def plan_judge(
    protocol: Protocol,
    items: Sequence[Item],
    judges: Sequence[AnyJudge],
    *,
    cache: ReplyCache,
    options: RunOptions | None = None,
) -> list[JudgePlan]:
    """Estimate what `run_judge` would need, one plan per judge; sends no requests and needs no API key.

    Raises:
        ConfigError, DataError: see `run_judge`.
    """
    options = options or RunOptions()
    check_judges(protocol, judges)
    work = Work.prepare(protocol, items, judges, cache)
    plans = []
    for judge in judges:
        questions = work.questions[judge.name]
        missing = [question for question in questions if question.is_open(protocol, options.tries)]
        usage = sum((guess_usage(question.requests[0]) for question in missing), JudgeUsage(0, 0))
        price = _price(judge, options)
        slots = [slot for slot in work.slots if slot.judge == judge]
        plans.append(
            JudgePlan(
                judge=judge.name,
                n_verdicts=len(slots),
                n_settled=sum(slot.settled is not None for slot in slots),
                n_cached=len(questions) - len(missing),
                n_requests=len(missing),
                usage=usage,
                cost_low=price.cost(replace(usage, n_output_tokens=0)) if price else None,
                cost_high=price.cost(usage) if price else None,
            )
        )
    return plans


def run_judge(
    protocol: Protocol,
    items: Sequence[Item],
    judges: Sequence[AnyJudge],
    *,
    cache: ReplyCache,
    options: RunOptions | None = None,
    show_progress: bool = False,
) -> JudgeRun:
    """Ask every judge about every item, except for questions with a cached reply.

    A verdict without a reply is unscored, with the reason. An interruption (Ctrl-C) cancels the requests in
    flight; replies that have arrived are in the cache.

    Raises:
        ConfigError: judges, keys or limits are invalid; no request was sent.
        DataError: an item lacks what the protocol needs; no request was sent.
        JudgeError: the cache cannot be written.
    """
    return asyncio.run(
        run_judge_async(protocol, items, judges, cache=cache, options=options, show_progress=show_progress)
    )


async def run_judge_async(
    protocol: Protocol,
    items: Sequence[Item],
    judges: Sequence[AnyJudge],
    *,
    cache: ReplyCache,
    options: RunOptions | None = None,
    show_progress: bool = False,
) -> JudgeRun:
    """Like `run_judge`, for callers with a running event loop."""
    options = options or RunOptions()
    check_judges(protocol, judges)
    _check_prices(judges, options)
    work = Work.prepare(protocol, items, judges, cache)
    ledger = Ledger(options.budget)
    async with AsyncExitStack() as stack:
        is_open = any(
            question.is_open(protocol, options.tries) for judge in judges for question in work.questions[judge.name]
        )
        # Nothing is loaded, and no cluster asked, if all replies are there.
        rewards = options.reward_models() if is_open and protocol.asks_reward_models else LocalRewardModels()
        queues = [
            await stack.enter_async_context(
                _JudgeQueue(judge, work.questions[judge.name], protocol, cache, ledger, options, rewards)
            )
            for judge in judges
        ]
        stack.enter_context(rewards)  # the first to end, so that no client waits for an answer of theirs
        total = sum(len(queue.open) for queue in queues)
        with progress("judging", total, "questions") if show_progress else nullcontext(_ignore) as advance:
            await _all_done([worker for queue in queues for worker in queue.workers(advance)])
    unanswered = [slot for slot in work.slots if slot.question is not None and not slot.question.replies]
    return JudgeRun(
        judgements=tuple(slot.judgement(protocol) for slot in work.slots),
        spending={queue.judge.name: queue.spending for queue in queues},
        n_unanswered=len(unanswered),
        stopped={queue.judge.name: queue.stopped for queue in queues if queue.stopped is not None},
        notes=tuple(f"{queue.judge.name} {note}" for queue in queues for note in queue.notes),
    )


class _JudgeQueue:
    """Works through the open questions of one judge."""

    def __init__(
        self,
        judge: AnyJudge,
        questions: Sequence[JudgeQuestion],
        protocol: Protocol,
        cache: ReplyCache,
        ledger: Ledger,
        options: RunOptions,
        rewards: RewardModels,
    ) -> None:
        self.judge = judge
        self.open = [question for question in questions if question.is_open(protocol, options.tries)]
        self.stopped: str | None = None
        self._protocol = protocol
        self._cache = cache
        self._options = options
        self._price = _price(judge, options)
        self._n_failures = 0
        self._spending = Spending(n_cached=len(questions) - len(self.open))
        self._client = _client(judge, ledger, options, rewards)

    async def __aenter__(self) -> _JudgeQueue:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    @property
    def spending(self) -> Spending:
        """Requests, tokens and cost so far."""
        return replace(self._spending, n_requests=self._client.n_requests)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where requests differed from the protocol's parameters."""
        return self._client.notes

    def workers(self, advance: Callable[[int], None]) -> list[Coroutine[Any, Any, None]]:
        """Coroutines that share the open questions: twice the concurrency, since some wait to retry."""
        questions = iter(self.open)
        return [self._work(questions, advance) for _ in range(min(2 * self._options.concurrency, len(self.open)))]

    async def _work(self, questions: Iterator[JudgeQuestion], advance: Callable[[int], None]) -> None:
        for question in questions:
            if self.stopped is None:
                await self._settle(question)
            else:
                question.reason = self.stopped
            advance(1)

    async def _settle(self, question: JudgeQuestion) -> None:
        """Ask until a reply can be parsed or the tries are used up; record the reason if there is no reply."""
        request = question.requests[0]
        usage = guess_usage(request)
        while question.is_open(self._protocol, self._options.tries):
            try:
                reply = await self._client.ask(
                    request.as_body(),
                    n_tokens=usage.n_prompt_tokens + usage.n_output_tokens,
                    quote=Quote.of_request(self._price, usage),
                )
            except BudgetSpentError as error:
                self.stopped = question.reason = f"budget: {error}"
                return
            except RequestError as error:
                question.reason = error.reason
                self._count_failure(error)
                return
            # No await from here to `put`, so that a cancellation cannot lose a reply.
            self._cache.put(question.key, reply)
            question.replies.append(reply)
            self._n_failures = 0
            cost = None if self._price is None or reply.usage is None else self._price.cost(reply.usage)
            self._spending = self._spending.answered(reply.usage, cost)

    def _count_failure(self, error: RequestError) -> None:
        if isinstance(error, FinalError):
            return  # caused by the question, not the judge
        self._n_failures += 1
        if self._n_failures >= _FAILURES_TO_STOP:
            self.stopped = (
                f"not asked: the judge failed {self._n_failures} times in a row, most recently with {error.reason}"
            )


def _price(judge: AnyJudge, options: RunOptions) -> Price | None:
    """The price of a judge's tokens; a local reward model is free."""
    return Price(0.0, 0.0) if isinstance(judge, RewardJudge) else options.prices.price(judge.model)


def _client(judge: AnyJudge, ledger: Ledger, options: RunOptions, rewards: RewardModels) -> ChatClient | RewardClient:
    if isinstance(judge, RewardJudge):
        return RewardClient(judge, ledger, rewards)
    return ChatClient(
        judge,
        ledger=ledger,
        concurrency=options.concurrency,
        timeout_s=options.timeout_s,
        retry=options.retry,
        window=TokenWindow(options.tokens_per_minute),
        token_limit=options.token_limit,
    )


def _check_prices(judges: Sequence[AnyJudge], options: RunOptions) -> None:
    unknown = [judge.name for judge in judges if _price(judge, options) is None]
    if options.budget.max_cost is not None and unknown:
        raise ConfigError(
            f"the price of {', '.join(unknown)} is unknown, so the cost cannot be limited: "
            "add it to a price table, or limit the number of requests"
        )


async def _all_done(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all coroutines; the first error cancels the others and is raised as it is, not in an exception group."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ignore(_count: int) -> None:
    """Progress callback that does nothing."""
