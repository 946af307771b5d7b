"""Reused and plain requests in one real engine: apart from each other, and whole whatever happens to them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.reuse_world import World

from ragalign.generation._vllm_start import CPU_BLOCK_SIZE
from ragalign.planning import PrefixCache
from ragalign.reuse.checking import ReuseLimits, check
from ragalign.reuse.pieces import piece_name
from ragalign.reuse_plan import ReusePlan
from ragalign.types import Completion, Decoding, Prompt

GREEDY = Decoding(max_tokens=6)


def query(seed: int, n: int = 20) -> list[int]:
    return [int(id_) for id_ in np.random.default_rng(seed).integers(5, 400, n)]


def answers(completions: Sequence[Completion]) -> list[tuple[tuple[int, ...], ...]]:
    return [tuple(output.token_ids for output in one.outputs) for one in completions]


def n_preemptions(world: World) -> int:
    return sum(int(one.value) for one in world.engine._llm.get_metrics() if one.name == "vllm:num_preemptions")


def both(world: World, n: int = 10) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts that are reused, and the same ones plain."""
    reused = [world.prompt([(k + i) % 12 for i in range(1 + k % 9)], query(k)) for k in range(n)]
    return reused, [replace(prompt, reuse=None) for prompt in reused]


def test_plain_and_reused_requests_interleaved_keep_apart(world: World) -> None:
    reused, plain = both(world)
    world.engine.reset_prefix_cache()
    alone = answers(world.engine.generate(plain, GREEDY))
    world.engine.reset_prefix_cache()
    approximate = answers(world.engine.generate(reused, GREEDY))
    assert approximate != alone  # or this test could not fail
    world.engine.reset_prefix_cache()
    mixed = [one for pair in zip(reused, plain, strict=True) for one in pair]
    for _ in range(2):  # the second time out of the cache
        found = answers(world.engine.generate(mixed, GREEDY))
        assert found[0::2] == approximate
        assert found[1::2] == alone
        found = answers(world.engine.generate(mixed[::-1], GREEDY))
        assert found[0::2] == alone[::-1]
        assert found[1::2] == approximate[::-1]


def test_tokens_are_computed_cached_or_reused(world: World) -> None:
    world.engine.reset_prefix_cache()
    prompt = world.prompt([2, 3, 4], query(1, 40))
    n_pieces = sum(len(world.pieces[number]) for number in (2, 3, 4))
    [first] = world.engine.generate([prompt], GREEDY)
    assert (first.n_cached_tokens, first.n_reused_tokens) == (len(world.prefix), n_pieces)
    [again] = world.engine.generate([prompt], GREEDY)
    assert again.n_reused_tokens == n_pieces
    assert again.n_cached_tokens is not None
    assert again.n_cached_tokens + n_pieces <= first.n_prompt_tokens - 1
    [plain] = world.engine.generate([replace(prompt, reuse=None)], GREEDY)
    assert (plain.n_cached_tokens, plain.n_reused_tokens) == (0, 0)


def test_the_simulator_knows_what_is_computed_cached_and_loaded(world: World) -> None:
    world.engine.reset_prefix_cache()
    reused, plain = both(world, 12)
    prompts = [one for pair in zip(reused, plain, strict=True) for one in pair]
    cache = PrefixCache(CPU_BLOCK_SIZE)
    for prompt in [*prompts, *prompts[:6]]:
        [completion] = world.engine.generate([prompt], replace(GREEDY, max_tokens=1))
        served = cache.serve(prompt)
        assert completion.n_cached_tokens is not None
        # The prefix, too, is loaded where the cache lacks it; it is exact, and counted as cached.
        assert completion.n_cached_tokens + completion.n_reused_tokens == served.n_cached + served.n_loaded


def test_a_reused_demonstration_and_one_that_is_computed_do_not_share_blocks(world: World) -> None:
    """The same tokens, once all reused and once the last one computed: neither reads the other's."""
    world.engine.reset_prefix_cache()
    all_reused, last_real = (world.prompt([5, 6, 7, 8], query(3), n_reused=n) for n in (4, 3))
    [first] = world.engine.generate([all_reused], GREEDY)
    [second] = world.engine.generate([last_real], GREEDY)
    assert second.n_reused_tokens == sum(len(world.pieces[number]) for number in (5, 6, 7))
    assert second.n_cached_tokens == len(world.prefix)
    assert first.n_reused_tokens > second.n_reused_tokens


def test_samples_seeds_streams_and_logprobs(world: World) -> None:
    reused, _ = both(world, 4)
    drawn = Decoding(temperature=1.0, max_tokens=8, n=3, seed=7)
    first = answers(world.engine.generate(reused, drawn))
    assert any(len(set(samples)) > 1 for samples in first)
    world.engine.reset_prefix_cache()
    assert answers(world.engine.generate(reused, drawn)) == first
    one = replace(drawn, n=1)
    assert [found[0] for found in answers(world.engine.generate(reused, one))] == [found[0] for found in first]
    parts = list(world.engine.stream(reused[0], replace(GREEDY, temperature=0.0)))
    [whole] = world.engine.generate([reused[0]], GREEDY)
    assert "".join(part.text for part in parts) == whole.text
    assert parts[-1].n_reused_tokens == whole.n_reused_tokens > 0


def test_a_request_that_is_given_up_in_the_middle_leaves_the_others_whole(world: World) -> None:
    reused, plain = both(world, 6)
    expected = answers(world.engine.generate([*reused, *plain], GREEDY))
    world.engine.reset_prefix_cache()
    for prompt in (reused[5], reused[4]):
        stream = world.engine.stream(prompt, Decoding(max_tokens=200))
        next(stream)
        stream.close()
    assert answers(world.engine.generate([*reused, *plain], GREEDY)) == expected


def test_requests_that_are_preempted_come_back_as_they_were(world: World) -> None:
    """Far more is asked than the cache holds, so that requests give way and are loaded again."""
    prompts = [world.prompt([(k + i) % 12 for i in range(9)], query(100 + k)) for k in range(60)]
    long = Decoding(max_tokens=120)
    expected = [answers(world.engine.generate([prompt], long))[0] for prompt in prompts[:3]]
    world.engine.reset_prefix_cache()
    before = n_preemptions(world)
    assert answers(world.engine.generate(prompts, long))[:3] == expected
    assert n_preemptions(world) > before


def test_a_check_without_reuse_does_not_pass(world: World) -> None:
    """Where nothing can be loaded everything is computed, and both ways would be found equal."""
    world.engine.reset_prefix_cache()
    prompts = [world.prompt([k, k + 1, k + 2], query(k)) for k in range(4)]
    answers_ = [query(50 + k) for k in range(4)]
    limits = ReuseLimits(difference=10, same_top1=0, exact=1e-4)
    found = check(world.engine, prompts, answers_, limits=limits)
    assert found.verdict == "pass"
    assert found.n_reused_tokens == found.n_planned_tokens > 0
    assert found.difference != 0
    world.engine.reset_prefix_cache()
    path = world.store.path(piece_name(world.pieces[2]))
    aside = path.rename(path.with_suffix(".aside"))
    try:
        found = check(world.engine, prompts, answers_, limits=limits)
    finally:
        aside.rename(path)
    assert found.verdict == "fail"
    assert found.n_reused_tokens < found.n_planned_tokens
    world.engine.reset_prefix_cache()


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: ReusePlan("0" * 40, plan.n_prefix_tokens, plan.lengths),
        lambda plan: ReusePlan(plan.key, plan.n_prefix_tokens - 1, plan.lengths),
        lambda plan: ReusePlan(plan.key, plan.n_prefix_tokens, (*plan.lengths, 5000)),
        lambda plan: ReusePlan(plan.key, plan.n_prefix_tokens, (plan.lengths[0] + 1, *plan.lengths[1:])),
    ],
    ids=["another store", "another prefix", "longer than the prompt", "other borders"],
)
def test_a_plan_that_does_not_fit_the_tokens_costs_a_real_prefill(world: World, change: object) -> None:
    world.engine.reset_prefix_cache()
    prompt = world.prompt([2, 3, 4], query(9))
    [plain] = world.engine.generate([replace(prompt, reuse=None)], GREEDY)
    assert callable(change)
    [wrong] = world.engine.generate([replace(prompt, reuse=change(prompt.reuse))], GREEDY)
    assert wrong.n_reused_tokens == 0
    assert answers([wrong]) == answers([plain])


def test_a_store_that_vanishes_or_is_damaged_costs_a_real_prefill(world: World, tmp_path: Path) -> None:
    """Last: it breaks the store, and puts it back. The memory in front of it holds a few pieces only."""
    prompt, others = world.prompt([9, 10, 11], query(11)), world.prompt(list(range(9)), query(12))
    [plain] = world.engine.generate([replace(prompt, reuse=None)], GREEDY)
    pieces = world.store.folder / "pieces"
    saved = shutil.copytree(pieces, tmp_path / "saved")
    damaged = world.store.path(piece_name(world.pieces[10]))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    world.engine.generate([others], GREEDY)  # the memory is full of others' pieces now
    world.engine.reset_prefix_cache()
    [cut] = world.engine.generate([prompt], GREEDY)
    assert cut.n_reused_tokens <= len(world.pieces[9])
    assert cut.finish_reason == plain.finish_reason
    assert not damaged.exists()  # nobody tries it again
    world.engine.reset_prefix_cache()
    [again] = world.engine.generate([prompt], GREEDY)
    assert again.n_reused_tokens <= len(world.pieces[9])
    try:
        shutil.rmtree(pieces)
        world.engine.reset_prefix_cache()
        [gone] = world.engine.generate([prompt], GREEDY)
        assert gone.n_reused_tokens == 0
        assert answers([gone]) == answers([plain])
    finally:
        shutil.copytree(saved, pieces, dirs_exist_ok=True)
    world.engine.reset_prefix_cache()
    [back] = world.engine.generate([prompt], GREEDY)
    assert back.n_reused_tokens > 0
