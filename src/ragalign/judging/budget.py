"""Limits on the requests and cost of judging, and what was spent."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ragalign.errors import ConfigError
from ragalign.judging.requests import JudgeUsage


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a run, over all judges; None means no limit.

    Attributes:
        max_requests: maximum requests, including failed ones and retries.
        max_cost: maximum US dollars. A request is sent only if its maximum cost still fits.
    """

    max_requests: int | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        if self.max_requests is not None and self.max_requests < 0:
            raise ConfigError(f"max_requests must be at least 0, not {self.max_requests}")
        if self.max_cost is not None and not 0 <= self.max_cost < math.inf:
            raise ConfigError(f"max_cost must be at least 0 US dollars, not {self.max_cost}")


@dataclass(frozen=True, slots=True)
class Spending:
    """Requests, tokens and cost of one judge in a run.

    Attributes:
        n_requests: requests sent, including failed ones and retries.
        n_answered: requests that were answered.
        n_cached: questions answered from the cache.
        usage: tokens of answered requests, where the endpoint reports usage.
        n_without_usage: answered requests without reported usage.
        cost: US dollars of all answered requests; None if the model's price or some usage is unknown.
    """

    n_requests: int = 0
    n_answered: int = 0
    n_cached: int = 0
    usage: JudgeUsage = field(default_factory=lambda: JudgeUsage(0, 0))
    n_without_usage: int = 0
    cost: float | None = 0.0

    def answered(self, usage: JudgeUsage | None, cost: float | None) -> Spending:
        """The spending after one more answer."""
        return replace(
            self,
            n_answered=self.n_answered + 1,
            usage=self.usage if usage is None else self.usage + usage,
            n_without_usage=self.n_without_usage + (usage is None),
            cost=None if cost is None or self.cost is None else self.cost + cost,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "n_requests": self.n_requests,
            "n_answered": self.n_answered,
            "n_cached": self.n_cached,
            "n_prompt_tokens": self.usage.n_prompt_tokens,
            "n_output_tokens": self.usage.n_output_tokens,
            "n_without_usage": self.n_without_usage,
            "cost": self.cost,
        }


class BudgetSpentError(Exception):
    """Another request would exceed the budget; the message names the limit."""


class Ledger:
    """Books each request of a run before it is sent, so that concurrent requests cannot exceed the budget together."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._spent = 0.0
        self._reserved = 0.0
        self._n_requests = 0
        self._n_in_flight = 0
        self._settled = asyncio.Event()
        self._exhausted = asyncio.Event()
        self._spent_reason: str | None = None

    async def reserve(self, at_most: float) -> None:
        """Book a request that costs at most `at_most` US dollars, waiting while requests in flight could leave room.

        Raises:
            BudgetSpentError: a limit is reached, by this request or by an earlier one.
        """
        limits = self._budget
        while self._spent_reason is None:
            if limits.max_requests is not None and self._n_requests >= limits.max_requests:
                self._spent_reason = f"the limit of {limits.max_requests} requests is reached"
            elif limits.max_cost is None or self._spent + self._reserved + at_most <= limits.max_cost:
                self._n_requests += 1
                self._n_in_flight += 1
                self._reserved += at_most
                return
            elif self._n_in_flight == 0:
                self._spent_reason = f"the limit of ${limits.max_cost:g} leaves no room for another request"
            else:
                self._settled.clear()
                await self._settled.wait()
        # Wake all that wait, for room or for a retry.
        self._settled.set()
        self._exhausted.set()
        raise BudgetSpentError(self._spent_reason)

    async def sleep(self, seconds: float) -> None:
        """Wait before a retry.

        Raises:
            BudgetSpentError: the budget was spent in the meantime, so there is no retry.
        """
        try:
            await asyncio.wait_for(self._exhausted.wait(), seconds)
        except TimeoutError:
            return
        raise BudgetSpentError(self._spent_reason or "the budget is spent")

    def settle(self, at_most: float, cost: float) -> None:
        """Replace a finished request's maximum cost by its actual cost."""
        self._n_in_flight -= 1
        self._reserved = self._reserved - at_most if self._n_in_flight else 0.0
        self._spent += cost
        self._settled.set()


def cost_note(spending: Mapping[str, Spending]) -> str:
    """A run's cost as text."""
    known = [spent.cost for spent in spending.values() if spent.cost is not None]
    unknown = [judge for judge, spent in spending.items() if spent.cost is None]
    parts = [f"${sum(known):.4f}"] if known else []
    if unknown:
        parts.append(f"unknown for {', '.join(unknown)} (no price or no usage)")
    return " + ".join(parts)
