"""Dividing planned prompts among engines: what it costs in prefilled tokens, and that nothing is lost."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError
from ragalign.executors.cluster import fits, plan_workers
from ragalign.executors.division import Division, cuts, n_shared
from ragalign.planning.cache import PrefixCache

RNG = np.random.default_rng(0)


def planned(n_groups: int, sizes: random.Random) -> list[np.ndarray]:
    """Prompts in a plan's order: constants, then groups that share leading demonstrations, and nested ones in them."""
    constants = RNG.integers(0, 1000, 200, dtype=np.int32)
    found = []
    for _ in range(n_groups):
        first = RNG.integers(0, 1000, 400, dtype=np.int32)
        for _ in range(sizes.randint(1, 4)):
            second = RNG.integers(0, 1000, 300, dtype=np.int32)
            for _ in range(sizes.randint(1, 5)):
                own = RNG.integers(0, 1000, sizes.randint(100, 900), dtype=np.int32)
                found.append(np.concatenate([constants, first, second, own]))
    return found


def prefilled(prompts: list[np.ndarray], orders: list[list[int]]) -> int:
    """Tokens that the engines compute, each with a cache of its own."""
    total = 0
    for order in orders:
        cache = PrefixCache()
        total += sum(len(prompts[position]) - cache.ask(prompts[position]) for position in order)
    return total


def divided(prompts: list[np.ndarray], workers: int, size: int, speeds: random.Random | None = None) -> list[list[int]]:
    """What each worker is given, if they take turns at random."""
    division = Division(workers, size)
    division.add(0, prompts)
    orders: list[list[int]] = [[] for _ in range(workers)]
    turns = speeds or random.Random(0)
    while division.n_left:
        worker = turns.randrange(workers)
        orders[worker] += division.take(worker)
    return orders


def test_four_workers_prefill_little_more_than_one_engine() -> None:
    prompts = planned(120, random.Random(3))
    alone = prefilled(prompts, [list(range(len(prompts)))])
    four = prefilled(prompts, divided(prompts, 4, 32))
    assert len(prompts) > 600
    assert alone <= four <= 1.03 * alone
    # Dealt out one by one, as tasks would be, the plan's gain is lost.
    dealt = prefilled(prompts, [list(range(worker, len(prompts), 4)) for worker in range(4)])
    assert dealt > 1.2 * alone


def test_parts_have_about_as_many_tokens_each() -> None:
    prompts = planned(120, random.Random(4))
    starts = [*cuts(prompts, 4), len(prompts)]
    sizes = [sum(len(prompts[n]) for n in range(a, b)) for a, b in pairwise(starts)]
    assert max(sizes) < 1.25 * min(sizes)
    # Cut between groups, not inside one.
    assert all(n_shared(prompts[start - 1], prompts[start]) == 200 for start in starts[1:-1])


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 9), st.randoms(use_true_random=False), st.data())
def test_each_position_is_given_once_even_if_runs_come_back(
    n: int, workers: int, size: int, turns: random.Random, data: st.DataObject
) -> None:
    prompts = [np.arange(position, position + 5, dtype=np.int32) for position in range(n)]
    division = Division(workers, size)
    half = n // 2
    division.add(0, prompts[:half])
    division.add(half, prompts[half:])
    done: list[int] = []
    for _ in range(10 * n + 20):
        worker = turns.randrange(workers)
        run = division.take(worker)
        assert len(run) <= size
        assert run == sorted(run)
        if run and data.draw(st.booleans()):  # the worker dies after some of them
            n_done = data.draw(st.integers(0, len(run)))
            done += run[:n_done]
            division.give_back(worker, run[n_done:])
        else:
            done += run
        if not division.n_left:
            break
    while division.n_left:
        done += division.take(0)
    assert sorted(done) == list(range(n))


@given(st.integers(0, 30), st.integers(1, 8))
def test_cuts_are_in_order(n: int, parts: int) -> None:
    prompts = [np.zeros(1 + position % 3, dtype=np.int32) for position in range(n)]
    starts = cuts(prompts, parts)
    assert len(starts) == min(n, parts)
    assert starts == sorted(set(starts))
    assert not starts or starts[0] == 0


CPU_NODE, GPU_NODE = {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}


def test_workers_by_the_cluster() -> None:
    assert plan_workers([GPU_NODE, GPU_NODE], None, gpus=1).workers == 8
    assert plan_workers([GPU_NODE, GPU_NODE], None, gpus=2).workers == 4
    assert plan_workers([GPU_NODE, CPU_NODE], 3, gpus=1).options() == {"num_cpus": 1, "num_gpus": 1}
    assert plan_workers([CPU_NODE], None, gpus=1).options() == {"num_cpus": 8, "num_gpus": 0}
    assert plan_workers([CPU_NODE, CPU_NODE], 3, gpus=1).cpus == 4
    assert plan_workers([CPU_NODE], 7, gpus=1, reserved_cpus=1).cpus == 1
    assert plan_workers([CPU_NODE], 2, gpus=1, reserved_cpus=1, free_cpus=6).cpus == 2
    assert fits([GPU_NODE, CPU_NODE], 5, 0) == 4


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "reserved", "numbers"),
    [
        (
            [{"CPU": 2.0}],
            2,
            1,
            1,
            "2 workers need 1 CPU each, and 1 for reading, but it has 2 CPUs and 0 GPUs on 1 node",
        ),
        ([CPU_NODE], 9, 1, 0, "9 workers need 1 CPU each, but it has 8 CPUs"),
        ([GPU_NODE], 5, 1, 0, "5 workers need 1 GPU and 1 CPU each, but it has 16 CPUs and 4 GPUs on 1 node"),
        (
            [GPU_NODE, GPU_NODE],
            3,
            3,
            0,
            "3 workers need 3 GPUs and 1 CPU each, but it has 32 CPUs and 8 GPUs on 2 nodes",
        ),
        ([GPU_NODE], None, 8, 0, "1 worker needs 8 GPUs"),
    ],
)
def test_a_cluster_too_small_is_refused_with_the_numbers(
    nodes: list[dict[str, float]], workers: int | None, gpus: float, reserved: float, numbers: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_workers(nodes, workers, gpus=gpus, reserved_cpus=reserved)
    assert numbers in str(refused.value)
    assert "\n" not in str(refused.value)
