"""The loss in quality by reuse on given questions: reused against full attention, on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import DataError
from ragalign.generation.distributions import Distributions, SupportsReuse
from ragalign.reuse.store import StoreManifest
from ragalign.reuse_plan import ReusePlan
from ragalign.statistics import mean
from ragalign.types import Prompt

# At the first token of an answer, logits are compared among the most probable tokens of either side.
_TOP = 20
# Prompts per call of the engine.
_BATCH = 32


@dataclass(frozen=True, slots=True)
class ReuseLimits:
    """The limits of an acceptable result.

    Attributes:
        difference: maximum nats per token that reuse adds to the negative log-likelihood of reference answers.
        same_top1: minimum share of positions at which both ways have the same most likely token.
        exact: maximum difference in nats per token where reuse must equal full attention up to rounding. The default
            is for rounding to bfloat16; see `for_store`.
    """

    difference: float = 0.02
    same_top1: float = 0.94
    exact: float = 0.01

    @classmethod
    def for_store(cls, manifest: StoreManifest, **limits: float) -> Self:
        """The limits for a store: 8 bits round more, float32 less; wrong positions are detected with all of them."""
        made = cls(**limits)
        if manifest.precision != "model":
            return replace(made, exact=5 * made.exact)
        return replace(made, exact=made.exact / 10) if (manifest.model or {}).get("dtype") == "float32" else made


@dataclass(frozen=True, slots=True)
class ReuseCheck:
    """How reused and full attention compare.

    Attributes:
        n: prompts.
        n_tokens: tokens of their reference answers.
        n_reused_tokens: tokens of demonstrations that the engine reused, per prompt.
        n_planned_tokens: tokens that it was asked to reuse, per prompt.
        nll_full, nll_reused: negative log-likelihood of the answers, nats per token, mean over prompts.
        difference, low, high: reused minus full, with its paired 95 % interval over prompts.
        same_top1: share of tokens at which both expect the same token most.
        first_token_logit: largest difference of log-probability at an answer's first token, nats.
        n_exact: prompts with one demonstration directly after the prefix, where both are the same computation.
        exact_difference: largest absolute difference of their answers' log-likelihood, nats per token.
        verdict: "pass" if all limits hold, and all planned tokens were reused; else a prompt is compared with itself.
        limits: these limits.
    """

    n: int
    n_tokens: int
    n_reused_tokens: float
    n_planned_tokens: float
    nll_full: float
    nll_reused: float
    difference: float
    low: float
    high: float
    same_top1: float
    first_token_logit: float
    n_exact: int
    exact_difference: float
    verdict: Literal["pass", "fail"]
    limits: ReuseLimits


def check(
    generator: SupportsReuse,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    *,
    limits: ReuseLimits | None = None,
    n_exact: int = 8,
    advance: Callable[[int], None] = lambda _: None,
) -> ReuseCheck:
    """Compare both ways.

    Args:
        generator: an engine that reuses the store which the prompts' plans name.
        prompts: those without a plan are left out.
        answers: token ids of each prompt's reference answer.
        limits: what is acceptable.
        n_exact: how many of the prompts to try where reuse has to be exact.
        advance: told how many prompts are done.

    Raises:
        DataError: no demonstration of any prompt is kept, or no prompt has an answer.
    """
    limits = limits or ReuseLimits()
    pairs = [
        (prompt, list(answer)) for prompt, answer in zip(prompts, answers, strict=True) if prompt.reuse and len(answer)
    ]
    if not pairs:
        raise DataError("nothing to compare: none of the prompts has a demonstration that is kept and a reference")
    full_nll, reused_nll, same, first, n_reused = [], [], [], [], []
    for start in range(0, len(pairs), _BATCH):
        batch = pairs[start : start + _BATCH]
        full = _scored(generator, [replace(prompt, reuse=None) for prompt, _ in batch], [a for _, a in batch])
        reused = _scored(generator, [prompt for prompt, _ in batch], [a for _, a in batch])
        n_reused += [n for _, n in reused]
        for (reference, _), (other, _) in zip(full, reused, strict=True):
            full_nll.append(-float(reference.logprobs.mean()))
            reused_nll.append(-float(other.logprobs.mean()))
            same.append(reference.top_ids[:, 0] == other.top_ids[:, 0])
            first.append(_largest(reference, other))
        advance(len(batch))
    # One demonstration directly after the prefix is the same computation, so a difference beyond rounding is a bug.
    single = [(_single(prompt), answer) for prompt, answer in pairs[:n_exact]]
    exact_full = _scored(generator, [replace(prompt, reuse=None) for prompt, _ in single], [a for _, a in single])
    exact = _scored(generator, [prompt for prompt, _ in single], [a for _, a in single])
    exact_difference = max(
        abs(float(reference.logprobs.mean() - other.logprobs.mean()))
        for (reference, _), (other, _) in zip(exact_full, exact, strict=True)
    )
    planned = [_n_planned(prompt) for prompt, _ in pairs]
    is_reused = n_reused == planned and [n for _, n in exact] == [_n_planned(prompt) for prompt, _ in single]
    found = mean(np.array(reused_nll) - np.array(full_nll))
    same_top1 = float(np.concatenate(same).mean())
    passes = found.value <= limits.difference and same_top1 >= limits.same_top1 and exact_difference <= limits.exact
    passes = passes and is_reused
    return ReuseCheck(
        n=len(pairs),
        n_tokens=sum(len(answer) for _, answer in pairs),
        n_reused_tokens=float(np.mean(n_reused)),
        n_planned_tokens=float(np.mean(planned)),
        nll_full=float(np.mean(full_nll)),
        nll_reused=float(np.mean(reused_nll)),
        difference=found.value,
        low=found.low,
        high=found.high,
        same_top1=same_top1,
        first_token_logit=max(first),
        n_exact=len(single),
        exact_difference=exact_difference,
        verdict="pass" if passes else "fail",
        limits=limits,
    )


def _scored(
    generator: SupportsReuse, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
) -> list[tuple[Distributions, int]]:
    found = {position: (shown, n) for position, shown, n in generator.continuations(prompts, answers, top_k=_TOP)}
    return [found[position] for position in range(len(prompts))]


def _n_planned(prompt: Prompt) -> int:
    return prompt.reuse.n_tokens if prompt.reuse else 0


def _largest(reference: Distributions, other: Distributions) -> float:
    """The largest difference at the first position, among tokens that are in the top of both."""
    here, there = (
        dict(zip(d.top_ids[0].tolist(), d.top_logprobs[0].tolist(), strict=True)) for d in (reference, other)
    )
    return max((abs(here[id_] - there[id_]) for id_ in here.keys() & there.keys()), default=float("inf"))


def _single(prompt: Prompt) -> Prompt:
    """The prompt with its first reused demonstration only, directly after the prefix."""
    assert prompt.reuse is not None
    plan = prompt.reuse
    end = plan.n_prefix_tokens + plan.lengths[0]
    after = plan.n_prefix_tokens + plan.n_tokens
    ids: NDArray[np.int32] = np.concatenate([prompt.ids[:end], prompt.ids[after:]])
    return replace(prompt, ids=ids, reuse=ReusePlan(plan.key, plan.n_prefix_tokens, plan.lengths[:1]))
