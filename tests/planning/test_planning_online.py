"""Planning request by request, and what is remembered of an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fixtures.planning_pool import DEMONSTRATIONS, make_packer
from hypothesis import given
from hypothesis import strategies as st

from ragalign.packing import Packing
from ragalign.planning import OnlinePlanner, PlannerSettings, PrefixCache, PrefixMemory
from ragalign.planning.prefix_memory import PromptPart
from ragalign.tokenization import Tokenizer
from ragalign.types import Hit, Turn

N_PLAIN = 8


def hits_of(chosen: Sequence[int]) -> list[Hit]:
    return [Hit(DEMONSTRATIONS[n].id, 0.9 - rank / 200, rank) for rank, n in enumerate(chosen, start=1)]


def asked(n: int) -> list[Turn]:
    return [Turn("user", f"Query {n}?")]


def stream(n: int) -> list[list[Hit]]:
    """Arrivals of three kinds; within a kind the ranks differ."""
    random = np.random.default_rng(0)
    return [hits_of([int(15 * (row % 3) + place) for place in random.permutation(14)]) for row in range(n)]


def prefilled(planner: OnlinePlanner, arrivals: Sequence[list[Hit]], capacity: int | None = None) -> int:
    cache, total = PrefixCache(16, capacity), 0
    for n, hits in enumerate(arrivals):
        prompt = planner.pack(asked(n), hits, n_plain=N_PLAIN)
        n_cached = cache.ask(prompt.ids)
        planner.learn(prompt, n_cached)
        total += len(prompt.ids) - n_cached
    return total


def test_arrivals_are_steered_towards_what_is_held(tokenizer: Tokenizer) -> None:
    packer, costs = make_packer(tokenizer, Packing()), {}
    for strategy in ("none", "reorder", "relax"):
        settings = PlannerSettings(strategy, min_relevance=0.95)  # type: ignore[arg-type]
        costs[strategy] = prefilled(OnlinePlanner(packer, settings), stream(90))
    assert costs["relax"] < costs["reorder"] < costs["none"]
    assert costs["relax"] < 0.7 * costs["none"]


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=20, unique=True), max_size=12), st.integers(0, 3))
def test_promises_hold_for_each_prompt(tokenizer: Tokenizer, arrivals: list[list[int]], personal: int) -> None:
    packing = Packing(max_tokens=300)
    packer = make_packer(tokenizer, packing)
    planner = OnlinePlanner(packer, PlannerSettings("relax", min_relevance=0.9, personal=personal))
    for n, chosen in enumerate(arrivals):
        hits = hits_of(chosen)
        plain = packer.pack(asked(n), hits[:N_PLAIN])
        prompt = planner.pack(asked(n), hits, n_plain=N_PLAIN)
        ids, usual = ([one.id for one in each.demonstrations] for each in (prompt, plain))
        assert prompt.token_ids == [*tokenizer.prefix_ids, *tokenizer.encode(prompt.text)]
        assert prompt.n_demonstration_tokens <= packing.max_tokens
        assert len(set(ids)) == len(ids) <= len(usual)
        assert ids[len(ids) - min(personal, len(usual)) :] == usual[len(usual) - min(personal, len(usual)) :]
        gains = [
            sum(one.score / np.log2(rank + 1) for rank, one in enumerate(reversed(ranked), 1) if one.score)
            for ranked in (sorted(each.demonstrations, key=lambda one: one.score or 0) for each in (prompt, plain))
        ]
        assert gains[0] >= 0.9 * gains[1] - 1e-9


def test_a_conversation_keeps_its_demonstrations(tokenizer: Tokenizer) -> None:
    planner = OnlinePlanner(make_packer(tokenizer, Packing()), PlannerSettings("relax"))
    cache = PrefixCache(16)
    first = planner.pack(asked(1), hits_of(range(12)), n_plain=N_PLAIN)
    cache.ask(first.ids)
    turns = [*asked(1), Turn("assistant", "An answer."), Turn("user", "And then?")]
    # Retrieval for the later turn finds others.
    second = planner.pack(turns, hits_of(range(30, 42)), n_plain=N_PLAIN)
    assert [one.id for one in second.demonstrations] == [one.id for one in first.demonstrations]
    assert cache.ask(second.ids) >= first.n_demonstration_tokens // 16 * 16
    other = planner.pack([*asked(2), *turns[1:]], hits_of(range(30, 42)), n_plain=N_PLAIN)
    assert [one.id for one in other.demonstrations] != [one.id for one in first.demonstrations]


def test_reports_and_the_limit_make_it_forget() -> None:
    parts = {name: [PromptPart("start", 10), PromptPart(name, 100)] for name in "abcd"}
    memory = PrefixMemory(capacity=330)
    for name in "abc":
        memory.add(parts[name])
    assert memory.n_tokens == 310
    memory.add(parts["d"])
    assert memory.find(parts["a"]) is None
    assert memory.n_tokens == 310
    # The engine had the start only: what is older than c's last use is gone too.
    memory.add(parts["c"])
    memory.correct(parts["c"], 10, block_size=1)
    assert memory.find(parts["b"]) is None
    assert memory.find(parts["c"]) is not None
    assert memory.find(parts["d"]) is not None
    memory.correct(parts["d"], 110, block_size=1)
    assert memory.n_tokens == 210
