"""Options, results and estimates of a judging run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ragalign.errors import ConfigError
from ragalign.judging.base import Judgement, Verdict
from ragalign.judging.budget import Budget, Spending
from ragalign.judging.dialect import LIMITS, TokenLimit
from ragalign.judging.pricing import PriceTable
from ragalign.judging.requests import JudgeUsage
from ragalign.judging.retries import RetryPolicy
from ragalign.judging.reward import LocalRewardModels, RewardModels


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a judging run.

    Attributes:
        concurrency: maximum requests in flight per judge.
        timeout_s: maximum seconds per request.
        tokens_per_minute: maximum tokens in any 60 seconds per judge; None means no limit.
        tries: maximum replies per question until one can be parsed. A question with a parsed reply or with `tries`
            replies is not asked again, in later runs either.
        token_limit: the name of the token limit in requests: "max_tokens", "max_completion_tokens", or "auto",
            which starts with the first and adapts to the server's errors.
        retry: when to retry failed requests.
        budget: limits over all judges.
        prices: the prices of judges.
        reward_models: creates the `RewardModels` that score answers, in this process by default.

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
    reward_models: Callable[[], RewardModels] = LocalRewardModels

    def __post_init__(self) -> None:
        for name in ("concurrency", "tries"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.token_limit not in ("auto", *LIMITS):
            raise ConfigError(f"token_limit must be auto, {' or '.join(LIMITS)}, not {self.token_limit!r}")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be more than 0, not {self.timeout_s:g}")


@dataclass(frozen=True, slots=True)
class JudgeRun:
    """The results of a judging run.

    Attributes:
        judgements: one for each judge and request, in the order of judges and items.
        spending: requests, tokens and cost of each judge in this run.
        n_unanswered: verdicts that are unscored because there is no reply (budget, failures); another run asks again.
        stopped: for each judge that was not asked all questions, the reason.
        notes: where requests to a judge differed from the protocol's parameters.
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
        """The reasons of unscored verdicts with counts, most frequent first."""
        counts = Counter(verdict.reason for verdict in self.verdicts if verdict.reason is not None)
        return dict(counts.most_common())


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """An estimate for one judge, before any request is sent.

    Attributes:
        judge: the judge's name.
        n_verdicts: number of verdicts.
        n_settled: verdicts that need no judge.
        n_cached: distinct questions with a cached reply.
        n_requests: distinct questions to ask, each at least one request.
        usage: estimated maximum tokens (see `ragalign.judging.pricing.guess_usage`).
        cost_low, cost_high: US dollars if all replies were empty, or as long as allowed; None without a price.
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
