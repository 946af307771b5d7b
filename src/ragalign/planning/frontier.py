"""The cost and relevance of planning strategies on a workload: prefilled tokens against relevance kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ragalign.packing import More, Packer
from ragalign.planning.bounds import prefix_bound, reuse_bound
from ragalign.planning.cache import PrefixCache, TokenSources
from ragalign.planning.planner import Plan, Planner
from ragalign.planning.strategies import PlannerSettings, Strategy
from ragalign.types import Hit, Prompt, Turn

FLOORS = (0.99, 0.98, 0.96, 0.94, 0.915, 0.88)
# The strategies that exchange demonstrations, and so need a floor.
_WITH_FLOOR: tuple[Strategy, ...] = ("relax", "backbone", "hybrid")


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """The result of one setting on a workload, as means over the prompts that fit.

    Attributes:
        strategy, min_relevance, personal: the planner settings.
        relevance: relevance kept, as in `ragalign.planning.batch.CandidateBatch.relevance`.
        similarity: score of the retrieved demonstrations.
        n_demonstrations: demonstrations in a prompt, constant ones included.
        n_prompt_tokens: tokens of a prompt.
        n_prefilled: tokens per request that an engine computes: those that are not in the simulated cache.
        n_loaded: tokens per request whose kept keys and values are loaded.
        prefix_bound: lower bound of `n_prefilled` for any order of the same demonstrations; see
            `ragalign.planning.bounds`.
        reuse_bound: the same with reuse at any position.
        seconds: time to plan and pack the whole batch.
        planned_at: the `min_relevance` that the plan was made with; higher than `min_relevance` if the plan for a
            higher floor prefills fewer tokens.
    """

    strategy: Strategy
    min_relevance: float
    personal: int
    relevance: float
    similarity: float
    n_demonstrations: float
    n_prompt_tokens: float
    n_prefilled: float
    n_loaded: float
    prefix_bound: float
    reuse_bound: float
    seconds: float
    planned_at: float


def default_settings(settings: PlannerSettings, floors: Sequence[float] = FLOORS) -> list[PlannerSettings]:
    """Vary `settings`: every strategy, with several floors for those that exchange demonstrations."""
    found = [replace(settings, strategy="none"), replace(settings, strategy="reorder")]
    if settings.personal:
        found.append(replace(settings, strategy="reorder", personal=0))
    return found + [replace(settings, strategy=name, min_relevance=floor) for name in _WITH_FLOOR for floor in floors]


def frontier(
    packer: Packer,
    conversations: Sequence[Sequence[Turn]],
    hits: Sequence[Sequence[Hit]],
    settings: Iterable[PlannerSettings],
    *,
    n_plain: int | None = None,
    more: More | None = None,
    capacity: int | None = None,
) -> Iterator[FrontierPoint]:
    """Plan a workload with each setting and measure the plans, in the given order.

    A plan for a high floor also satisfies a lower one. A setting therefore uses the plan of a higher floor, of `FLOORS`
    or of another setting, if that prefills fewer tokens, so that a lower floor never costs more. `planned_at` has the
    floor of the plan.

    Args:
        packer: makes the prompts.
        conversations: conversations that end with a user turn.
        hits: the candidates of each, best first.
        settings: the settings to try.
        n_plain: number of hits for the plain choice; None means the packer's `max_demonstrations`.
        more: retrieves more candidates for places that would stay empty.
        capacity: blocks of the simulated cache; None for no limit.
    """
    asked = list(settings)
    found: dict[PlannerSettings, FrontierPoint] = {}

    def planned(setting: PlannerSettings) -> FrontierPoint:
        if setting not in found:
            start = time.perf_counter()
            plan = Planner(packer, setting).plan(conversations, hits, n_plain=n_plain, more=more)
            found[setting] = measure(plan, setting, capacity=capacity, seconds=time.perf_counter() - start)
        return found[setting]

    def best(setting: PlannerSettings) -> FrontierPoint:
        floor = setting.min_relevance
        floors = {*FLOORS, *(other.min_relevance for other in asked if replace(other, min_relevance=floor) == setting)}
        if setting.strategy not in _WITH_FLOOR:
            return planned(setting)
        higher = [replace(setting, min_relevance=other) for other in sorted(floors) if other > floor]
        points = [planned(setting), *map(planned, higher)]
        return replace(min(points, key=lambda point: point.n_prefilled), min_relevance=floor)

    for setting in asked:
        yield best(setting)


def measure(
    plan: Plan, settings: PlannerSettings, *, capacity: int | None = None, seconds: float = 0.0
) -> FrontierPoint:
    """Measure one plan."""
    prompts = [prompt for prompt in plan.prompts if isinstance(prompt, Prompt)]
    n = max(len(prompts), 1)
    used = [demonstration for prompt in prompts for demonstration in prompt.demonstrations]
    served = simulate(plan, settings.block_size, capacity)
    scores = [demonstration.score for demonstration in used if demonstration.score is not None]
    return FrontierPoint(
        strategy=settings.strategy,
        min_relevance=settings.min_relevance,
        personal=settings.personal,
        relevance=float(np.nanmean(plan.relevance)) if prompts else 1.0,
        similarity=float(np.mean(scores)) if scores else 0.0,
        n_demonstrations=len(used) / n,
        n_prompt_tokens=sum(len(prompt.ids) for prompt in prompts) / n,
        n_prefilled=sum(part.n_computed for part in served) / n,
        n_loaded=sum(part.n_loaded for part in served) / n,
        prefix_bound=prefix_bound(prompts),
        reuse_bound=reuse_bound(prompts),
        seconds=seconds,
        planned_at=settings.min_relevance,
    )


def simulate(plan: Plan, block_size: int, capacity: int | None = None) -> list[TokenSources]:
    """The tokens that an engine would compute, find cached and load for a plan's prompts, in planned order."""
    cache = PrefixCache(block_size, capacity)
    prompts = [plan.prompts[position] for position in plan.order]
    return [cache.serve(prompt) for prompt in prompts if isinstance(prompt, Prompt)]


def n_prefilled(plan: Plan, block_size: int, capacity: int | None = None) -> int:
    """Tokens that an engine would compute for a plan's prompts in planned order, by simulation."""
    return sum(part.n_computed for part in simulate(plan, block_size, capacity))


def pareto(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points that no other point beats in both tokens and relevance, most tokens first."""
    best: list[FrontierPoint] = []
    for point in sorted(points, key=lambda point: (-point.relevance, point.n_prefilled)):
        if not best or point.n_prefilled < best[-1].n_prefilled:
            best.append(point)
    return best
