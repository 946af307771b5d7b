"""The cost and relevance of planning strategies on a workload: prefilled tokens against relevance kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ragalign.packing import More, Packer
from ragalign.planning.bounds import prefix_bound, reuse_bound
from ragalign.planning.cache import PrefixCache
from ragalign.planning.planner import Plan, Planner
from ragalign.planning.strategies import PlannerSettings, Strategy
from ragalign.types import Hit, Prompt, Turn

FLOORS = (0.99, 0.98, 0.96, 0.94, 0.915, 0.88)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting on a workload. Figures are means over the prompts that fit.

    Attributes:
        strategy, min_relevance, personal: the setting.
        relevance: relevance kept, as in `ragalign.planning.batch.Batch.relevance`.
        similarity: score of the retrieved demonstrations.
        n_demonstrations: retrieved and constant ones in a prompt.
        n_prompt_tokens: length of the prompts.
        n_prefilled: tokens that are not in the simulated cache, per request.
        prefix_bound: no order of the same demonstrations can prefill fewer, see `ragalign.planning.bounds`.
        reuse_bound: the same with reuse at any position.
        seconds: to plan and pack the whole batch.
        planned_at: the floor that the plan was made with; higher than `min_relevance` where a tighter floor's plan
            prefills less.
    """

    strategy: Strategy
    min_relevance: float
    personal: int
    relevance: float
    similarity: float
    n_demonstrations: float
    n_prompt_tokens: float
    n_prefilled: float
    prefix_bound: float
    reuse_bound: float
    seconds: float
    planned_at: float


def default_settings(settings: PlannerSettings, floors: Sequence[float] = FLOORS) -> list[PlannerSettings]:
    """Every strategy, and those that exchange demonstrations at several floors; the rest is as in `settings`."""
    found = [replace(settings, strategy="none"), replace(settings, strategy="reorder")]
    if settings.personal:
        found.append(replace(settings, strategy="reorder", personal=0))
    strategies: tuple[Strategy, ...] = ("relax", "backbone", "hybrid")
    return found + [replace(settings, strategy=name, min_relevance=floor) for name in strategies for floor in floors]


def frontier(
    packer: Packer,
    conversations: Sequence[Sequence[Turn]],
    hits: Sequence[Sequence[Hit]],
    settings: Iterable[PlannerSettings],
    *,
    n_plain: int | None = None,
    more: More | None = None,
    capacity: int | None = None,
) -> Iterator[Point]:
    """Plan a workload with each setting and measure what comes of it, in the order given.

    A plan that keeps a tight floor keeps a looser one, too: where settings differ in their floor only, a looser one
    takes over the plan of a tighter one that prefills less, so that no floor costs more than a tighter one. Such a
    point names the floor to plan with in `planned_at`.

    Args:
        packer: makes the prompts.
        conversations: each ends with a user turn.
        hits: the candidates of each, best first.
        settings: what to try.
        n_plain: how many of the hits the plain choice is made from; None is the packer's `max_demonstrations`.
        more: retrieves more candidates, for places that would stay empty.
        capacity: blocks of the simulated cache; None for no limit.
    """
    asked = list(settings)
    found: dict[PlannerSettings, Point] = {}

    def planned(one: PlannerSettings) -> Point:
        if one not in found:
            start = time.perf_counter()
            plan = Planner(packer, one).plan(conversations, hits, n_plain=n_plain, more=more)
            found[one] = measure(plan, one, capacity=capacity, seconds=time.perf_counter() - start)
        return found[one]

    def best(one: PlannerSettings) -> Point:
        tighter = {
            other
            for other in asked
            if other.min_relevance > one.min_relevance and replace(other, min_relevance=one.min_relevance) == one
        }
        points = [planned(one), *(planned(other) for other in sorted(tighter, key=lambda other: other.min_relevance))]
        return replace(min(points, key=lambda point: point.n_prefilled), min_relevance=one.min_relevance)

    for one in asked:
        yield best(one)


def measure(plan: Plan, settings: PlannerSettings, *, capacity: int | None = None, seconds: float = 0.0) -> Point:
    """The figures of one plan."""
    prompts = [prompt for prompt in plan.prompts if isinstance(prompt, Prompt)]
    n = max(len(prompts), 1)
    used = [one for prompt in prompts for one in prompt.demonstrations]
    scores = [one.score for one in used if one.score is not None]
    return Point(
        strategy=settings.strategy,
        min_relevance=settings.min_relevance,
        personal=settings.personal,
        relevance=float(np.nanmean(plan.relevance)) if prompts else 1.0,
        similarity=float(np.mean(scores)) if scores else 0.0,
        n_demonstrations=len(used) / n,
        n_prompt_tokens=sum(len(prompt.ids) for prompt in prompts) / n,
        n_prefilled=n_prefilled(plan, settings.block_size, capacity) / n,
        prefix_bound=prefix_bound(prompts),
        reuse_bound=reuse_bound(prompts),
        seconds=seconds,
        planned_at=settings.min_relevance,
    )


def n_prefilled(plan: Plan, block_size: int, capacity: int | None = None) -> int:
    """Tokens that an engine computes for a plan's prompts, asked in planned order: simulated."""
    cache, total = PrefixCache(block_size, capacity), 0
    for position in plan.order:
        prompt = plan.prompts[position]
        if isinstance(prompt, Prompt):
            total += len(prompt.ids) - cache.ask(prompt.ids)
    return total


def pareto(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both tokens and relevance, dearest first."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.relevance, point.n_prefilled)):
        if not best or point.n_prefilled < best[-1].n_prefilled:
            best.append(point)
    return best
