"""What holds for every plan, whatever comes in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from fixtures.planning_pool import DEMONSTRATIONS, make_packer
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.packing import Packing
from ragalign.planning import Planner, PlannerSettings
from ragalign.planning.frontier import FLOORS, frontier, n_prefilled
from ragalign.tokenization import Tokenizer
from ragalign.types import Hit, Prompt, Turn

N_PLAIN = 8
STRATEGIES = ("none", "reorder", "relax", "backbone", "hybrid")


def hits_of(chosen: Sequence[int], scores: Sequence[float]) -> list[Hit]:
    ranked = sorted(scores[: len(chosen)], reverse=True)
    return [
        Hit(DEMONSTRATIONS[n].id, score, rank) for rank, (n, score) in enumerate(zip(chosen, ranked, strict=True), 1)
    ]


scores = st.lists(st.floats(-0.25, 1), min_size=30, max_size=30)
# Queries of few kinds, so that there is something to share.
orders = st.builds(
    lambda start, moved: [*moved, *(n for n in range(start, start + 25) if n not in moved)],
    st.integers(0, 10),
    st.lists(st.integers(0, 59), max_size=5, unique=True),
)
batches = st.lists(st.builds(hits_of, orders, scores), min_size=0, max_size=14)
all_settings = st.builds(
    PlannerSettings,
    strategy=st.sampled_from(STRATEGIES),
    min_relevance=st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.98, 1.0]),
    personal=st.integers(0, 3),
    candidates=st.sampled_from([1, 10, 30]),
    constants=st.integers(0, 4),
    cluster_size=st.sampled_from([1, 3, 50]),
    block_size=st.sampled_from([1, 16]),
)
packings = st.builds(
    Packing,
    max_demonstrations=st.integers(0, 9),
    max_tokens=st.sampled_from([0, 60, 300, 900, 3000]),
    max_demonstration_tokens=st.sampled_from([60, 500]),
    when_full=st.sampled_from(["stop", "skip"]),
    refill=st.booleans(),
)


def dcg(gains: Sequence[float]) -> float:
    ranked = sorted((max(gain, 0.0) for gain in gains), reverse=True)
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(ranked, 1))


@settings(max_examples=60)
@given(batches, all_settings, packings, st.integers(0, 2), st.sampled_from([None, 400, 60]))
def test_every_plan(
    tokenizer: Tokenizer,
    hits: list[list[Hit]],
    how: PlannerSettings,
    packing: Packing,
    n_constants: int,
    context_length: int | None,
) -> None:
    packer = make_packer(tokenizer, packing, n_constants, context_length)
    asked = [[Turn("user", f"Query number {n}? " + "word " * (n * 7 % 20))] for n in range(len(hits))]
    plan = Planner(packer, how).plan(asked, hits, n_plain=N_PLAIN)
    plain = packer.pack_many(asked, hits, n_plain=N_PLAIN)

    # No query is lost and none invented.
    assert len(plan.prompts) == len(asked)
    assert sorted(plan.order) == list(range(len(asked)))
    kept = []
    for turns, found, prompt, usual in zip(asked, hits, plan.prompts, plain, strict=True):
        assert isinstance(prompt, Prompt) == isinstance(usual, Prompt)
        if not (isinstance(prompt, Prompt) and isinstance(usual, Prompt)):
            continue
        assert turns[-1].content.strip() in prompt.pieces[-1]
        assert prompt.token_ids == [*tokenizer.prefix_ids, *tokenizer.encode(prompt.text)]
        # The budget and the context are kept, and demonstrations come from the candidates, each once.
        assert prompt.n_demonstration_tokens <= max(packing.max_tokens, 0)
        assert context_length is None or len(prompt.ids) <= context_length
        ids = [one.id for one in prompt.demonstrations if one.score is not None]
        wanted = [one for one in usual.demonstrations if one.score is not None]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= {hit.id for hit in found[: max(N_PLAIN, how.candidates)]} | {one.id for one in wanted}
        assert len(prompt.demonstrations) <= packing.max_demonstrations
        # The most similar ones are last.
        best = [one.id for one in wanted][::-1][: how.personal]
        assert how.strategy == "none" or ids[len(ids) - len(best) :] == best[::-1]
        if how.strategy in ("none", "reorder"):
            assert sorted(ids) == sorted(one.id for one in wanted)
        whole = dcg([one.score or 0.0 for one in wanted])
        if whole > 0:
            kept.append(dcg([one.score or 0.0 for one in prompt.demonstrations if one.score is not None]) / whole)
    assert not kept or np.mean(kept) >= how.min_relevance - 1e-9
    finite = [one for one in plan.relevance if not math.isnan(one)]
    assert len(finite) == sum(isinstance(one, Prompt) for one in plan.prompts)


def test_related_queries_share_and_the_unrelated_do_not_pay_for_it(tokenizer: Tokenizer) -> None:
    packer = make_packer(tokenizer, Packing())
    falling = list(np.linspace(0.9, 0.3, 30))
    # Six queries of two kinds; within a kind the ranks differ.
    hits = [
        hits_of([*range(20 * (n % 2) + n, 20 * (n % 2) + 14), *range(20 * (n % 2), 20 * (n % 2) + n)], falling)
        for n in range(6)
    ]
    asked = [[Turn("user", f"Query {n}?")] for n in range(6)]

    def cost(strategy: str) -> int:
        how = PlannerSettings(strategy=strategy, min_relevance=0.9)  # type: ignore[arg-type]
        return n_prefilled(Planner(packer, how).plan(asked, hits, n_plain=N_PLAIN), 16)

    assert cost("relax") < cost("reorder") < cost("none")
    assert cost("backbone") < cost("none")
    order = Planner(packer, PlannerSettings(strategy="relax")).plan(asked, hits, n_plain=N_PLAIN).order
    assert [n % 2 for n in order] in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])


def test_a_lower_floor_costs_less(tokenizer: Tokenizer) -> None:
    packer = make_packer(tokenizer, Packing(max_tokens=600))
    random = np.random.default_rng(0)
    hits = [hits_of(list(random.permutation(60)[:30]), sorted(random.random(30))) for _ in range(80)]
    asked = [[Turn("user", f"Query {n}?")] for n in range(80)]
    costs = []
    for floor in (1.0, 0.95, 0.9, 0.8):
        plan = Planner(packer, PlannerSettings("relax", min_relevance=floor)).plan(asked, hits, n_plain=N_PLAIN)
        assert np.mean(plan.relevance) >= floor
        costs.append(n_prefilled(plan, 16))
    assert max(costs[1:]) < 0.9 * costs[0]
    assert costs[-1] == min(costs)


@settings(max_examples=25)
@given(
    batches,
    st.lists(
        st.sampled_from([0.0, 0.3, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0]), min_size=2, max_size=5, unique=True
    ),
    st.sampled_from(STRATEGIES),
    st.sampled_from([1, 16]),
)
def test_no_floor_costs_more_than_a_tighter_one(
    tokenizer: Tokenizer, hits: list[list[Hit]], floors: list[float], strategy: str, block_size: int
) -> None:
    packer = make_packer(tokenizer, Packing(max_tokens=600))
    asked = [[Turn("user", f"Query number {n}?")] for n in range(len(hits))]
    one = PlannerSettings(strategy, personal=1, candidates=30, block_size=block_size)  # type: ignore[arg-type]
    tried = [replace(one, min_relevance=floor) for floor in floors]
    points = list(frontier(packer, asked, hits, tried, n_plain=N_PLAIN))
    assert [point.min_relevance for point in points] == floors, "in the order given"
    costs = [point.n_prefilled for point in sorted(points, key=lambda point: -point.min_relevance)]
    assert costs == sorted(costs, reverse=True)
    for point in points:
        assert point.relevance >= point.min_relevance - 1e-9
        assert point.planned_at >= point.min_relevance
        # It is the plan of the floor that it names.
        plan = Planner(packer, replace(one, min_relevance=point.planned_at)).plan(asked, hits, n_plain=N_PLAIN)
        assert n_prefilled(plan, block_size) == pytest.approx(point.n_prefilled * max(len(hits), 1))


def test_a_looser_floor_takes_over_a_cheaper_plan_of_a_tighter_one(tokenizer: Tokenizer) -> None:
    packer = make_packer(tokenizer, Packing(max_tokens=600))
    floors = [round(1 - step / 50, 2) for step in range(11)]
    crossed = 0
    for seed in range(6):
        random = np.random.default_rng(seed)
        hits = [hits_of(list(random.permutation(60)[:30]), sorted(random.random(30))) for _ in range(10)]
        asked = [[Turn("user", f"Query {n}?")] for n in range(10)]
        tried = [PlannerSettings("relax", min_relevance=floor) for floor in floors]
        points = list(frontier(packer, asked, hits, tried, n_plain=N_PLAIN))
        crossed += sum(point.planned_at > point.min_relevance for point in points)
        # Commands that ask for one floor each agree, since every command tries the usual floors above its own.
        alone = [
            next(iter(frontier(packer, asked, hits, [PlannerSettings("relax", min_relevance=floor)], n_plain=N_PLAIN)))
            for floor in FLOORS
        ]
        costs = [point.n_prefilled for point in alone]
        assert costs == sorted(costs, reverse=True)
    assert crossed, "on small workloads the search alone is not monotone"


def test_systems_and_plans_do_not_mix(tokenizer: Tokenizer) -> None:
    packer = make_packer(tokenizer, Packing())
    asked = [[Turn("system", f"Be {'brief' if n % 2 else 'kind'}."), Turn("user", f"Query {n}?")] for n in range(8)]
    hits = [hits_of(range(12), list(np.linspace(1, 0.5, 12)))] * 8
    plan = Planner(packer, PlannerSettings("relax")).plan(asked, hits, n_plain=N_PLAIN)
    assert sorted(plan.order) == list(range(8))
    assert [n % 2 for n in plan.order] in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strategy": "best"}, "no strategy 'best'; use one of none, reorder, relax, backbone, hybrid"),
        ({"min_relevance": 1.5}, "min_relevance must be between 0 and 1, not 1.5"),
        ({"personal": -1}, "personal must be 0 or more, not -1"),
        ({"block_size": 0}, "block_size must be 1 or more, not 0"),
    ],
)
def test_wrong_settings_are_named(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PlannerSettings(), **changed)  # type: ignore[arg-type]
