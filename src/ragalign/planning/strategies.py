"""Planning strategies: choosing and ordering demonstrations and requests for a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ragalign.errors import ConfigError
from ragalign.planning.batch import CandidateBatch, Selection
from ragalign.planning.clusters import cluster
from ragalign.planning.exchange import exchange
from ragalign.planning.sharing import share

Strategy = Literal["none", "reorder", "relax", "backbone", "hybrid"]

# How often queries are inserted again. Later passes change little. If demonstrations were chosen to be shared, the tree
# already exists, and one pass adds what the choice missed.
_PASSES = 3
_PASSES_AFTER_EXCHANGE = 1
# The search for the price of relevance: its start, in multiples of a prompt's tokens, and its maximum trials.
_FIRST_PRICE = 7.0
_TRIALS = 5
# A plan within this distance above the floor is good enough.
_CLOSE = 0.0007


@dataclass(frozen=True, slots=True)
class PlannerSettings:
    """Settings of the planner: the table ``[planner]`` of a recipe.

    Attributes:
        strategy: ``none`` keeps the packer's choice; ``reorder`` keeps each prompt's demonstrations and orders them to
            be shared; ``relax`` also exchanges them for others further down the list of candidates; ``backbone`` gives
            each cluster of queries one shared run; ``hybrid`` gives all prompts the same first demonstrations (if they
            are candidates for the query), and then as few others as the floor allows.
        min_relevance: the floor on relevance kept, averaged over a batch, in [0, 1].
        personal: number of most similar demonstrations that stay with each query, last in its prompt.
        candidates: number of candidates per query to consider.
        constants: for ``hybrid``, number of demonstrations that all prompts begin with.
        cluster_size: for ``backbone``, queries per cluster on average.
        block_size: tokens per block of the engine's prefix cache.

    Raises:
        ConfigError: a value is out of range.
    """

    strategy: Strategy = "none"
    min_relevance: float = 0.98
    personal: int = 2
    candidates: int = 100
    constants: int = 3
    cluster_size: int = 32
    block_size: int = 16

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ConfigError(f"planner: no strategy {self.strategy!r}; use one of {', '.join(get_args(Strategy))}")
        if not 0 <= self.min_relevance <= 1:
            raise ConfigError(f"planner: min_relevance must be between 0 and 1, not {self.min_relevance}")
        for name in ("personal", "constants"):
            if getattr(self, name) < 0:
                raise ConfigError(f"planner: {name} must be 0 or more, not {getattr(self, name)}")
        for name in ("candidates", "cluster_size", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"planner: {name} must be 1 or more, not {getattr(self, name)}")


def select(batch: CandidateBatch, settings: PlannerSettings) -> Selection:
    """Apply the strategy of the settings to a batch; if that saves nothing, keep the plain sets."""
    found = _STRATEGIES[settings.strategy](batch, settings)
    usual = _reorder(batch, settings) if settings.strategy == "relax" else _none(batch, settings)
    return found if found.n_tokens(batch) <= usual.n_tokens(batch) else usual


def _none(batch: CandidateBatch, settings: PlannerSettings) -> Selection:
    nothing = np.zeros_like(batch.plain)
    return Selection([[] for _ in range(len(batch))], nothing, batch.plain, range(len(batch)))


def _reorder(batch: CandidateBatch, settings: PlannerSettings) -> Selection:
    return _share(batch, _none(batch, settings), settings, _PASSES)


def _relax(batch: CandidateBatch, settings: PlannerSettings) -> Selection:
    def choose(price: float) -> Selection:
        return exchange(batch, price=price, personal=settings.personal)

    return _share(batch, _cheapest_above(batch, settings, choose), settings, _PASSES_AFTER_EXCHANGE)


def _backbone(batch: CandidateBatch, settings: PlannerSettings) -> Selection:
    clusters = cluster(batch, max(1, round(len(batch) / settings.cluster_size)))

    def choose(price: float) -> Selection:
        return exchange(batch, price=price, personal=settings.personal, clusters=clusters)

    return _cheapest_above(batch, settings, choose)


def _hybrid(batch: CandidateBatch, settings: PlannerSettings) -> Selection:
    """Constant demonstrations, then as few of the most similar ones as the floor allows."""
    there = batch.items >= 0
    totals = np.bincount(batch.items[there], batch.gains[there], len(batch.lengths))
    constants: list[int] = np.argsort(-totals, kind="stable")[: settings.constants].tolist()
    # A demonstration that is not a candidate of a query can be excluded for it, such as the query's own answer; and the
    # most similar ones come last.
    common = np.where(batch.plain & (np.arange(batch.items.shape[1]) < settings.personal), -1, batch.items)
    has = np.array([(common == item).any(axis=1) for item in constants], dtype=np.bool_).reshape(-1, len(batch))
    # Half of the budget is for the query's own demonstrations, and prompts get no more demonstrations than without
    # planning.
    has &= np.cumsum(batch.lengths[constants])[:, None] <= batch.budgets // 2
    n_shared = np.minimum.accumulate(has, axis=0).sum(axis=0)
    n_shared = np.minimum(n_shared, np.maximum(batch.n_plain - settings.personal, 0))
    paths = [constants[:n] for n in n_shared.tolist()]
    shared = np.array([np.isin(row, path) for row, path in zip(batch.items, paths, strict=True)])
    shared = shared.reshape(batch.items.shape)
    low, high = min(settings.personal, batch.items.shape[1]), int(batch.n_plain.max(initial=0))
    while low < high:
        middle = (low + high) // 2
        if _kept(batch, shared, _most_similar(batch, shared, middle)) >= settings.min_relevance:
            high = middle
        else:
            low = middle + 1
    own = _most_similar(batch, shared, low)
    if _kept(batch, shared, own) < settings.min_relevance:
        return _none(batch, settings)
    order: list[int] = np.argsort(-n_shared, kind="stable").tolist()
    return Selection(paths, shared, own, order)


_STRATEGIES: Mapping[Strategy, Callable[[CandidateBatch, PlannerSettings], Selection]] = {
    "none": _none,
    "reorder": _reorder,
    "relax": _relax,
    "backbone": _backbone,
    "hybrid": _hybrid,
}


def _cheapest_above(
    batch: CandidateBatch, settings: PlannerSettings, choose: Callable[[float], Selection]
) -> Selection:
    """Find the cheapest selection that keeps the floor, by searching for the price of relevance.

    Relevance grows with the price, and usually the cost too. The search is a secant method in the logarithms of price
    and loss, kept inside the known bracket.
    """
    floor = settings.min_relevance
    best = choose(math.inf)
    if floor >= 1 or len(batch) < 2:
        return best
    least = best.n_tokens(batch)
    price = _FIRST_PRICE * max(1.0, float(np.where(batch.plain, batch.tokens, 0).sum(axis=1).mean()))
    low, high = 0.0, math.inf
    points: list[tuple[float, float]] = []
    for _ in range(_TRIALS):
        trial = choose(price)
        kept = _kept(batch, trial.shared, trial.own)
        if kept >= floor:
            high = price
            if (n_tokens := trial.n_tokens(batch)) < least:
                best, least = trial, n_tokens
            if kept < floor + _CLOSE:
                break
        else:
            low = price
        points.append((math.log(price), math.log(max(1 - kept, 1e-6))))
        price = _next_price(points, math.log(max(1 - floor - _CLOSE / 3, 1e-6)), low, high)
    return best


def _next_price(points: list[tuple[float, float]], wanted: float, low: float, high: float) -> float:
    (x, y) = points[-1]
    slope = -1.0
    if len(points) > 1 and points[-2][0] != x:
        slope = min(-0.2, (y - points[-2][1]) / (x - points[-2][0]))
    price = math.exp(x + max(-2.0, min(2.0, (wanted - y) / slope)))
    if not low < price < high:
        price = math.sqrt(low * high) if low and math.isfinite(high) else (high / 4 if low == 0 else low * 4)
    return price


def _share(batch: CandidateBatch, chosen: Selection, settings: PlannerSettings, passes: int) -> Selection:
    """Reorder the same demonstrations to be shared."""
    used = chosen.shared | chosen.own
    free = used.copy()
    free[:, : settings.personal] = False
    sets = [frozenset(row[mask].tolist()) for row, mask in zip(batch.items, free, strict=True)]
    paths, order = share(
        sets,
        batch.lengths.tolist(),
        chosen.order,
        passes=passes,
        n_before=batch.n_before,
        block_size=batch.block_size,
    )
    shared = np.zeros_like(used)
    for row, path in enumerate(paths):
        if path:
            shared[row] = np.isin(batch.items[row], path)
    return Selection(paths, shared, used & ~shared, order)


def _most_similar(batch: CandidateBatch, shared: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """The best `n` of the plain choice that are not shared and fit the rest of the budget."""
    left = batch.budgets - np.where(shared, batch.tokens, 0).sum(axis=1)
    own: NDArray[np.bool_] = batch.plain & ~shared
    own &= np.cumsum(own, axis=1) <= np.minimum(n, batch.n_plain - shared.sum(axis=1))[:, None]
    own &= np.cumsum(np.where(own, batch.tokens, 0), axis=1) <= left[:, None]
    return own


def _kept(batch: CandidateBatch, shared: NDArray[np.bool_], own: NDArray[np.bool_]) -> float:
    """Relevance kept, averaged over the queries with a plain choice."""
    kept = batch.relevance(shared | own)[batch.n_plain > 0]
    return float(kept.mean()) if len(kept) else 1.0
