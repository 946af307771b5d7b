"""Asks judges about many items: concurrently, resumably, within a budget, and without losing or inventing a verdict."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from ragalign._progress import progress
from ragalign.errors import ConfigError
from ragalign.judging.base import Item, Judgement, JudgeUsage, Protocol, Verdict
from ragalign.judging.budget import Budget, BudgetSpentError, Ledger, Spending
from ragalign.judging.cache import ReplyCache
from ragalign.judging.client import ChatClient
from ragalign.judging.dialect import LIMITS, TokenLimit
from ragalign.judging.judges import AnyJudge, RewardJudge, check_judges
from ragalign.judging.limits import TokenWindow
from ragalign.judging.pricing import Price, PriceTable, Quote, guess_usage
from ragalign.judging.questions import Question, Work
from ragalign.judging.retries import FinalError, RequestError, RetryPolicy
from ragalign.judging.reward import RewardClient

# So many questions in a row given up, without an answer between them, and the judge is not asked the rest.
_FAILURES_TO_STOP = 3


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How judges are asked.

    Attributes:
        concurrency: most requests in flight, for each judge.
        timeout_s: most seconds for one request.
        tokens_per_minute: most tokens in any 60 seconds, for each judge; None is no limit.
        tries: how often one question is asked until a reply can be read. A question with a readable reply is never
            asked again, nor one with `tries` replies, in no later run either.
        token_limit: what requests call the limit on new tokens: "max_tokens", "max_completion_tokens", or "auto",
            which begins with the first and learns from the server's error.
        retry: what to do when a request is not answered.
        budget: what may be spent, over all judges.
        prices: to compute costs from.

    Raises:
        ConfigError: a number is out of range.
    """

    concurrency: int = 16
    timeout_s: float = 120.0
    tokens_per_minute: int | None = None
    tries: int = 1
    token_limit: TokenLimit = "auto"
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    budget: Budget = field(default_factory=Budget)
    prices: PriceTable = field(default_factory=PriceTable.load)

    def __post_init__(self) -> None:
        for name in ("concurrency", "tries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.token_limit not in ("auto", *LIMITS):
            raise ConfigError(f"token_limit is auto, {' or '.join(LIMITS)}, not {self.token_limit!r}")
        if not self.timeout_s > 0:
            raise ConfigError(f"the timeout must be more than 0 seconds, not {self.timeout_s:g}")


@dataclass(frozen=True, slots=True)
class JudgeRun:
    """What came of a run.

    Attributes:
        judgements: one per request and judge, in the order of judges and items.
        spending: what each judge took in this run.
        n_unanswered: verdicts that are unscored for want of a reply (budget, failures); another run asks again.
        stopped: for each judge that was not asked everything, why.
        notes: for people: where a judge took other parameters than the protocol's.
    """

    judgements: tuple[Judgement, ...]
    spending: Mapping[str, Spending]
    n_unanswered: int
    stopped: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts, in the same order."""
        return [judgement.verdict for judgement in self.judgements]

    @property
    def reasons(self) -> dict[str, int]:
        """Why verdicts are unscored, with how many each, most frequent first."""
        counts = Counter(verdict.reason for verdict in self.verdicts if verdict.reason is not None)
        return dict(counts.most_common())


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """What asking one judge would take, before anything is asked.

    Attributes:
        judge: the judge's name.
        n_verdicts: verdicts to be had.
        n_settled: those of them that need no judge.
        n_cached: distinct questions that are already answered.
        n_requests: distinct questions still to ask, each at least one request.
        usage: tokens that they take at most, roughly (see `ragalign.judging.pricing.guess_usage`).
        cost_low, cost_high: US dollars if every reply were empty, or as long as allowed; None without a price.
    """

    judge: str
    n_verdicts: int
    n_settled: int
    n_cached: int
    n_requests: int
    usage: JudgeUsage
    cost_low: float | None
    cost_high: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "judge": self.judge,
            "n_verdicts": self.n_verdicts,
            "n_settled": self.n_settled,
            "n_cached": self.n_cached,
            "n_requests": self.n_requests,
            "n_prompt_tokens": self.usage.n_prompt_tokens,
            "n_output_tokens": self.usage.n_output_tokens,
            "cost_low": self.cost_low,
            "cost_high": self.cost_high,
        }


def plan_judge(
    protocol: Protocol,
    items: Sequence[Item],
    judges: Sequence[AnyJudge],
    *,
    cache: ReplyCache,
    options: RunOptions | None = None,
) -> list[JudgePlan]:
    """What `run_judge` would take, one plan per judge; asks nothing and needs no key.

    Raises:
        ConfigError, DataError: as `run_judge`.
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
    """Ask every judge about every item, except what the cache already answers.

    A verdict that cannot be had is unscored, with its reason. An interruption (Ctrl-C) cancels the requests in
    flight; replies that had arrived are in the cache.

    Raises:
        ConfigError: judges, keys or limits are unusable; nothing has been asked.
        DataError: an item lacks what the protocol needs; nothing has been asked.
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
    """The same as `run_judge`, for callers that have an event loop."""
    options = options or RunOptions()
    check_judges(protocol, judges)
    _check_prices(judges, options)
    work = Work.prepare(protocol, items, judges, cache)
    ledger = Ledger(options.budget)
    async with AsyncExitStack() as stack:
        queues = [
            await stack.enter_async_context(
                _JudgeQueue(judge, work.questions[judge.name], protocol, cache, ledger, options)
            )
            for judge in judges
        ]
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
        questions: Sequence[Question],
        protocol: Protocol,
        cache: ReplyCache,
        ledger: Ledger,
        options: RunOptions,
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
        self._client = _client(judge, ledger, options)

    async def __aenter__(self) -> _JudgeQueue:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.aclose()

    @property
    def spending(self) -> Spending:
        """What was spent so far."""
        return replace(self._spending, n_requests=self._client.n_requests)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the server took other parameters than the protocol's."""
        return self._client.notes

    def workers(self, advance: Callable[[int], None]) -> list[Coroutine[Any, Any, None]]:
        """Coroutines that share the open questions: twice as many as requests in flight, as some wait to retry."""
        questions = iter(self.open)
        return [self._work(questions, advance) for _ in range(min(2 * self._options.concurrency, len(self.open)))]

    async def _work(self, questions: Iterator[Question], advance: Callable[[int], None]) -> None:
        for question in questions:
            if self.stopped is None:
                await self._settle(question)
            else:
                question.reason = self.stopped
            advance(1)

    async def _settle(self, question: Question) -> None:
        """Ask until a reply can be read or the tries are used up; what cannot be had gets its reason."""
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
            # No await from here to `put`: what has arrived cannot be lost to a cancellation.
            self._cache.put(question.key, reply)
            question.replies.append(reply)
            self._n_failures = 0
            cost = None if self._price is None or reply.usage is None else self._price.cost(reply.usage)
            self._spending = self._spending.answered(reply.usage, cost)

    def _count_failure(self, error: RequestError) -> None:
        if isinstance(error, FinalError):
            return  # the question's fault, not the judge's
        self._n_failures += 1
        if self._n_failures >= _FAILURES_TO_STOP:
            self.stopped = f"not asked: the judge failed {self._n_failures} times in a row, last with {error.reason}"


def _price(judge: AnyJudge, options: RunOptions) -> Price | None:
    """What tokens cost; a model on this machine takes no money."""
    return Price(0.0, 0.0) if isinstance(judge, RewardJudge) else options.prices.price(judge.model)


def _client(judge: AnyJudge, ledger: Ledger, options: RunOptions) -> ChatClient | RewardClient:
    if isinstance(judge, RewardJudge):
        return RewardClient(judge, ledger)
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
            f"the price of {', '.join(unknown)} is not known, so a limit on cost cannot be kept: "
            "add it to a price table, or limit the number of requests"
        )


async def _all_done(coroutines: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all to the end; the first error cancels the others and is raised as it is, without a group around it."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _ignore(_count: int) -> None:
    """Progress that nobody watches."""
