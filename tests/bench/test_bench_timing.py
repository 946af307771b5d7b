"""Speed: prices do not depend on the order of conditions, and measurements never mix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ragalign.aligner import Aligner
from ragalign.bench import timing
from ragalign.bench.timing import measure, read_timings
from ragalign.errors import DataError
from ragalign.recipes import Recipe
from ragalign.types import Completion, Decoding, Prompt, Query, Turn

FACTS = {"machine": "a test"}


class Slowing:
    """An engine whose cost is known: a token takes a second of its own clock at first, and longer the longer it runs.

    Nothing is decoded: timing looks at the clock only. The command's test times the real engine.
    """

    model, context_length, shares_cpu = "slowing", 4096, True

    def __init__(self, slowdown: float) -> None:
        self._slowdown = slowdown
        self.now, self.interrupt_after = 0.0, 10**9
        self.asked: list[int] = []
        self.events: list[str] = []

    def reset_prefix_cache(self) -> bool:
        self.events.append("reset")
        return True

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
        if len(self.asked) == self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append(len(prompts))
        self.events.append("batch" if len(prompts) > 1 else "single")
        n_tokens = sum(len(prompt.ids) for prompt in prompts)
        self.now += n_tokens * (1 + self._slowdown * self.now)
        return []


@pytest.fixture
def slowing(monkeypatch: pytest.MonkeyPatch) -> Slowing:
    found = Slowing(slowdown=1e-6)
    monkeypatch.setattr(timing, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: found.now)}))
    return found


QUERIES = [Query(str(n), (Turn("user", f"Name {n} rivers of the north."),)) for n in range(4)]


def aligners(generator: object, tiny_model: Path) -> dict[str, Aligner]:
    """A short and a long recipe, and the long one once more, which comes last."""
    decoding = Decoding(max_tokens=2, temperature=0.0)

    def make(name: str) -> Aligner:
        found = Aligner.from_recipe(Recipe.load(name), model=generator, tokenizer=tiny_model)  # type: ignore[arg-type]
        found.decoding = decoding
        return found

    return {"zero-shot": make("zero-shot"), "long": make("urial"), "again": make("urial")}


def test_a_machine_that_slows_down_changes_no_price(slowing: Slowing, tiny_model: Path, tmp_path: Path) -> None:
    chosen = aligners(slowing, tiny_model)
    lengths = {
        name: sum(len(prompt.ids) for prompt in one.plan(QUERIES).prompts if isinstance(prompt, Prompt))
        for name, one in chosen.items()
    }
    found = measure(tmp_path, chosen, slowing, QUERIES, base="zero-shot", facts=FACTS)  # type: ignore[arg-type]
    assert found.rounds[-1]["zero-shot"].engine_s > 1.1 * found.rounds[0]["zero-shot"].engine_s, "it does slow down"
    assert found.price("long").ratio == pytest.approx(lengths["long"] / lengths["zero-shot"], rel=0.1)
    # Equal work comes out equal: two recipes that do the same, and the control.
    assert found.price("again").ratio == pytest.approx(found.price("long").ratio, rel=0.1)
    assert found.summary().is_quiet
    assert found.price("zero-shot").ratio == found.price("zero-shot").low == found.price("zero-shot").high == 1
    for name in chosen:
        rates = found.requests_per_s("zero-shot") / found.requests_per_s(name)
        assert rates == pytest.approx(found.price(name).ratio)


def test_rounds_are_interleaved_and_begin_with_an_empty_cache(
    slowing: Slowing, tiny_model: Path, tmp_path: Path
) -> None:
    found = measure(tmp_path, aligners(slowing, tiny_model), slowing, QUERIES, base="long", facts=FACTS, n_rounds=3)  # type: ignore[arg-type]
    # One round to warm up; the base twice in each; single requests, then the cache is emptied again for the batch.
    turn = ["reset", *["single"] * len(QUERIES), "reset", "batch"]
    assert slowing.events == turn * (3 + 1) * (3 + 1)
    assert (len(found.rounds), len(found.control)) == (3, 3)
    assert all(set(one) == {"zero-shot", "long", "again"} for one in found.rounds)
    assert len(found.first_tokens_s("long")) == 3 * len(QUERIES)


def test_the_order_of_conditions_differs_between_rounds(
    slowing: Slowing, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = aligners(slowing, tiny_model)
    seen: list[str] = []
    for name, one in chosen.items():
        plan = one.plan
        monkeypatch.setattr(one, "plan", lambda queries, name=name, plan=plan: (seen.append(name), plan(queries))[1])
    measure(tmp_path, chosen, slowing, QUERIES, base="long", facts=FACTS)  # type: ignore[arg-type]
    rounds = [tuple(seen[place : place + 4]) for place in range(0, len(seen), 4)]
    assert len(rounds) == timing.ROUNDS + 1
    assert all(sorted(one) == ["again", "long", "long", "zero-shot"] for one in rounds)
    assert len(set(rounds)) > 2


def test_an_interrupted_measurement_leaves_nothing(slowing: Slowing, tiny_model: Path, tmp_path: Path) -> None:
    chosen = aligners(slowing, tiny_model)
    slowing.interrupt_after = 20
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, chosen, slowing, QUERIES, base="long", facts=FACTS)  # type: ignore[arg-type]
    assert read_timings(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    slowing.interrupt_after = 10**9
    done = measure(tmp_path, chosen, slowing, QUERIES, base="long", facts=FACTS)  # type: ignore[arg-type]
    assert read_timings(tmp_path) == done
    assert done.facts == FACTS


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"base": "a", "rounds": [1]}', "\udcff"])
def test_damaged_timings_are_reported_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "timings.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"timings\.json is damaged: delete it"):
        read_timings(tmp_path)


@pytest.mark.parametrize(("n", "n_rounds", "asked"), [(1, 5, 1), (8, 5, 8), (30, 5, 8), (200, 5, 40), (1000, 5, 64)])
def test_about_one_pass_is_timed(n: int, n_rounds: int, asked: int) -> None:
    queries = [Query(str(place), (Turn("user", "a"),)) for place in range(n)]
    chosen = timing._spaced(queries, n_rounds)
    assert len(chosen) == asked
    assert len({one.id for one in chosen}) == asked
