"""Dividing planned prompts among engines: what it costs in prefilled tokens, and that nothing is lost."""

from __future__ import annotations

import random
import time
from collections import deque
from itertools import chain, pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError, GenerationError
from ragalign.executors.division import Division, cuts, n_shared
from ragalign.executors.gathering import Gathering
from ragalign.executors.room import WorkerResources, fits, plan_workers, wait_for_room
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


class Trickle:
    """Stands for the reader of an iterator of which only a few items are ready at a time."""

    def __init__(self, n: int, at_a_time: int) -> None:
        self._left, self._at_a_time, self.has_ended = deque(range(n)), at_a_time, False

    def take(self, n: int, *, wait: bool) -> list[int]:
        found = [self._left.popleft() for _ in range(min(n, self._at_a_time, len(self._left)))]
        self.has_ended = not self._left
        return found


def shared_out(prompts: list[np.ndarray], at_a_time: int, *, gathers: bool) -> list[list[int]]:
    """What four workers with two runs each are given if prompts trickle in; they advance at random."""
    division, turns = Division(4, 256), random.Random(at_a_time)
    coming: Any = Trickle(len(prompts), at_a_time)
    gathering = Gathering(coming, 4 * 256, 8192)
    orders: list[list[int]] = [[] for _ in range(4)]
    runs: list[deque[int]] = [deque() for _ in range(4)]
    n_read = 0
    while n_read < len(prompts) or division.n_left or any(runs):
        if division.n_left <= 4 * 256:
            fresh = gathering.take(is_starved=False) if gathers else coming.take(8192, wait=False)
            division.add(n_read, [prompts[position] for position in fresh])
            n_read += len(fresh)
        for n_runs in (1, 2):
            for worker in range(4):
                if len(runs[worker]) < n_runs and (run := division.take(worker, is_busy=bool(runs[worker]))):
                    orders[worker] += run
                    runs[worker].append(len(run))
        if own := runs[turns.randrange(4)]:
            own[0] -= turns.randint(1, 40)
            if own[0] <= 0:
                own.popleft()
    return orders


@pytest.mark.parametrize("at_a_time", [8, 64, 4000])
def test_prompts_that_trickle_in_keep_the_gain_of_a_plan(at_a_time: int) -> None:
    prompts = planned(540, random.Random(3))[:4000]
    alone = prefilled(prompts, [list(range(len(prompts)))])
    orders = shared_out(prompts, at_a_time, gathers=True)
    assert sorted(chain(*orders)) == list(range(4000))
    assert min(map(len, orders)) > 800
    assert alone <= prefilled(prompts, orders) <= 1.03 * alone
    if at_a_time == 8:  # divided as they come, they lose it
        assert prefilled(prompts, shared_out(prompts, at_a_time, gathers=False)) > 1.1 * alone


def test_a_few_items_are_handed_out_when_workers_wait_or_no_more_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ragalign.executors.gathering._GATHER_S", 0.05)
    coming: Any = Trickle(12, 5)
    gathering = Gathering(coming, 100, 100)
    assert gathering.take(is_starved=True) == []
    time.sleep(0.06)
    assert gathering.take(is_starved=False) == []
    assert gathering.take(is_starved=False) == list(range(12))
    assert gathering.wait() == []
    coming = Trickle(12, 5)
    gathering = Gathering(coming, 100, 100)
    assert gathering.take(is_starved=True) == []
    time.sleep(0.06)
    assert gathering.take(is_starved=True) == list(range(10))
    assert gathering.wait() == [10, 11]


def test_what_a_worker_dies_of_is_isolated() -> None:
    division = Division(2, 64)
    division.add(0, [np.zeros(1, np.int32)] * 256)
    culprit, sizes = 40, []
    while division.n_deaths(culprit) < 4:
        run = division.take(len(sizes) % 2)
        if culprit in run:
            sizes.append(len(run))
            division.give_back(len(sizes) % 2, run, is_death=True)
            assert division.take(len(sizes) % 2, is_busy=True) == []  # others' runs must not share the blame
    assert sizes == [64, 64, 4, 1]
    assert [n for n in range(256) if division.n_deaths(n) > 3] == [culprit]


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
        run = division.take(worker, is_busy=data.draw(st.booleans()))
        assert len(run) <= size
        assert run == sorted(run)
        assert len({division.n_deaths(position) for position in run}) <= 1
        if run and data.draw(st.booleans()):  # the worker dies after some of them
            n_done = data.draw(st.integers(0, len(run)))
            done += run[:n_done]
            heir = data.draw(st.integers(0, workers - 1))
            division.give_back(heir, run[n_done:], is_death=data.draw(st.booleans()))
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
    assert plan_workers([GPU_NODE], None, gpus=1, cpus=8).workers == 2
    assert plan_workers([CPU_NODE], None, gpus=1).options() == {"num_cpus": 8, "num_gpus": 0}
    assert plan_workers([CPU_NODE, CPU_NODE], 3, gpus=1).cpus == 4
    assert plan_workers([CPU_NODE], 2, gpus=1, free=[{"CPU": 6.0}]).cpus == 3
    assert plan_workers([CPU_NODE], 8, gpus=1, free=[{}]).cpus == 1
    assert plan_workers([CPU_NODE], 2, gpus=1, cpus=0.5).cpus == 0.5
    assert fits([GPU_NODE, CPU_NODE], 5, 0) == 4
    assert fits([CPU_NODE], 0.1, 0) == 80


def cluster_with(free: list[dict[str, float]], total: dict[str, float]) -> Any:
    """Stands for the module `ray`: nodes with these resources, of which only some are free."""
    ids = [str(number) for number in range(len(free))]
    state = SimpleNamespace(available_resources_per_node=lambda: dict(zip(ids, free, strict=True)))
    nodes = [{"NodeID": id_, "Alive": True, "Resources": total} for id_ in ids]
    return SimpleNamespace(nodes=lambda: nodes, _private=SimpleNamespace(state=state))


def test_a_worker_must_find_its_room_on_one_node() -> None:
    """Ray would wait without end: the totals are enough, but those of no node."""
    halves = [{"CPU": 2.0}, {"CPU": 2.0}]
    assert plan_workers([{"CPU": 4.0}] * 2, 1, gpus=1, free=halves).cpus == 2
    with pytest.raises(ConfigError, match=r"1 worker needs 6 CPUs, but it has 8 CPUs and 0 GPUs on 2 nodes"):
        plan_workers([{"CPU": 4.0}] * 2, 1, gpus=1, cpus=6)
    wait_for_room(cluster_with(halves, {"CPU": 4.0}), WorkerResources(2, 2, 0), patience_s=0)
    need = WorkerResources(1, 4, 0)
    with pytest.raises(
        GenerationError, match=r"1 worker needs 4 CPUs, and 4 CPUs .* on 2 nodes, with room for 0; wait"
    ):
        wait_for_room(cluster_with(halves, {"CPU": 4.0}), need, patience_s=0)
    one_gpu_each = cluster_with([{"CPU": 7.0, "GPU": 1.0}] * 2, {"CPU": 8.0, "GPU": 2.0})
    with pytest.raises(GenerationError, match="1 worker needs 2 GPUs and 1 CPU, and 14 CPUs and 2 GPUs are free"):
        wait_for_room(one_gpu_each, WorkerResources(1, 1, 2), patience_s=0)
    with pytest.raises(GenerationError, match="room for 2; wait for other jobs, or use at most 2 workers"):
        wait_for_room(one_gpu_each, WorkerResources(3, 1, 1), patience_s=0)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "numbers"),
    [
        ([{"CPU": 1.0}], 2, 1, "2 workers need 1 CPU each, but it has 1 CPUs and 0 GPUs on 1 node; use at most 1"),
        ([CPU_NODE], 9, 1, "9 workers need 1 CPU each, but it has 8 CPUs"),
        ([GPU_NODE], 5, 1, "5 workers need 1 GPU and 1 CPU each, but it has 16 CPUs and 4 GPUs on 1 node"),
        ([GPU_NODE] * 2, 3, 3, "3 workers need 3 GPUs and 1 CPU each, but it has 32 CPUs and 8 GPUs on 2 nodes"),
        ([GPU_NODE], None, 8, "1 worker needs 8 GPUs"),
    ],
)
def test_a_cluster_too_small_is_refused_with_the_numbers(
    nodes: list[dict[str, float]], workers: int | None, gpus: float, numbers: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_workers(nodes, workers, gpus=gpus)
    assert numbers in str(refused.value)
    assert "\n" not in str(refused.value)
