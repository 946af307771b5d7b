"""Candidates that have to be skipped are replaced by the next most similar ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fixtures.planning_pool import DEMONSTRATIONS, make_packer
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.packing import Packing
from ragalign.planning import OnlinePlanner, Planner, PlannerSettings
from ragalign.recipes import Recipe, packaged_recipes
from ragalign.tokenization import Tokenizer
from ragalign.types import Hit, Prompt, Query, Turn

ASKED = [Turn("user", "Which numbers are prime?")]
RANKING = [Hit(one.id, 1 - rank / 100, rank) for rank, one in enumerate(DEMONSTRATIONS, 1)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Tokenizer:
    return Tokenizer.load(tiny_model)


def longest_first(tokenizer: Tokenizer) -> tuple[list[Hit], int]:
    """A ranking whose first three candidates are too long, and a limit that every second one keeps."""
    counts = make_packer(tokenizer, Packing()).token_counts([one.id for one in DEMONSTRATIONS])
    longest = sorted(counts, key=lambda id_: -counts[id_])
    order = [*longest[:3], *longest[30:], *longest[3:30]]
    return [Hit(id_, 1 - rank / 100, rank) for rank, id_ in enumerate(order, 1)], counts[longest[30]]


def more_of(ranking: Sequence[Hit], asked: list[int]) -> Callable[[Sequence[int], int], list[list[Hit]]]:
    def more(positions: Sequence[int], k: int) -> list[list[Hit]]:
        asked.append(k)
        return [list(ranking[:k]) for _ in positions]

    return more


packings = st.builds(
    Packing,
    max_demonstrations=st.integers(0, 12),
    max_tokens=st.sampled_from([0, 150, 400, 1000, 5000]),
    max_demonstration_tokens=st.sampled_from([10, 30, 60, 100, 500]),
    when_full=st.sampled_from(["stop", "skip"]),
)


@settings(max_examples=60)
@given(packings, st.permutations(RANKING), st.integers(0, 12), st.integers(0, 30), st.integers(0, 2))
def test_the_chosen_are_the_first_of_the_whole_ranking_that_fit(
    tokenizer: Tokenizer, packing: Packing, ranking: list[Hit], n_plain: int, n_extra: int, n_constants: int
) -> None:
    packer = make_packer(tokenizer, packing, n_constants)
    prompt = packer.pack(ASKED, ranking[: n_plain + n_extra], n_plain=n_plain, more=more_of(ranking, []))
    [choice] = packer.choose_many([ASKED], [[]])
    counts = packer.token_counts([hit.id for hit in ranking])
    never = {one.demonstration.id for one in packer.constants}
    expected: list[str] = []
    budget = choice.budget
    places = min(packing.max_demonstrations - choice.n_constants, n_plain)
    for hit in ranking:
        if len(expected) >= places:
            break
        if hit.id in never or counts[hit.id] > packing.max_demonstration_tokens:
            continue
        if counts[hit.id] > budget:
            if packing.when_full == "stop":
                break
            continue
        budget -= counts[hit.id]
        expected.append(hit.id)
    used = [one.id for one in prompt.demonstrations if one.score is not None]
    assert used[::-1] == expected
    # Every candidate that was asked for at first, or is more similar than one that is used, is accounted for.
    last = max((n for n, hit in enumerate(ranking, 1) if hit.id in used), default=0)
    told = {hit.id for hit in ranking[: max(n_plain, last)]} - never
    assert {one.id for one in prompt.dropped if one.score is not None} == told - set(used)
    for one in prompt.dropped:
        assert one.score is None or (one.reason == "too_long") <= (one.n_tokens > packing.max_demonstration_tokens)


def test_nothing_is_retrieved_again_without_need(tokenizer: Tokenizer) -> None:
    ranking, limit = longest_first(tokenizer)
    asked: list[int] = []
    roomy = make_packer(tokenizer, Packing(max_demonstrations=6))
    roomy.pack(ASKED, ranking[:6], n_plain=6, more=more_of(ranking, asked))
    assert asked == []
    strict = make_packer(tokenizer, Packing(max_demonstrations=6, max_demonstration_tokens=limit))
    assert len(strict.pack(ASKED, ranking[:6], n_plain=6, more=more_of(ranking, asked)).demonstrations) == 6
    assert asked == [24]
    off = strict.with_packing(Packing(max_demonstrations=6, max_demonstration_tokens=limit, refill=False))
    assert len(off.pack(ASKED, ranking[:6], n_plain=6, more=more_of(ranking, asked)).demonstrations) == 3
    assert asked == [24]


def test_tokens_that_are_nearly_used_up_do_not_read_the_whole_pool(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragalign.packing.packer.MOST_WHEN_TIGHT", 20)
    asked: list[int] = []
    packer = make_packer(tokenizer, Packing(max_demonstrations=12, max_tokens=150, when_full="skip"))
    packer.pack(ASKED, RANKING[:3], n_plain=3, more=more_of(RANKING, asked))
    packer.pack(ASKED, RANKING[:12], n_plain=12, more=more_of(RANKING, asked))
    assert max(asked) <= 48


def test_planners_refill_too(tokenizer: Tokenizer) -> None:
    ranking, limit = longest_first(tokenizer)
    packer = make_packer(tokenizer, Packing(max_demonstrations=6, max_demonstration_tokens=limit))
    for strategy in ("none", "reorder", "relax"):
        how = PlannerSettings(strategy, candidates=6)  # type: ignore[arg-type]
        [planned] = Planner(packer, how).plan([ASKED], [ranking[:6]], n_plain=6, more=more_of(ranking, [])).prompts
        arrived = OnlinePlanner(packer, how).pack(ASKED, ranking[:6], n_plain=6, more=more_of(ranking, []))
        assert isinstance(planned, Prompt)
        assert len(planned.demonstrations) == len(arrived.demonstrations) == 6


@pytest.fixture(scope="module")
def index(starter_index: Path, minilm: Encoder) -> Index:
    return Index.open(starter_index, encoder=minilm)


QUERIES = [Query(str(n), (Turn("user", text),)) for n, text in enumerate(("Why is the sky blue?", "Bake bread", "Hi"))]


@pytest.mark.parametrize("when_full", ["stop", "skip"])
def test_aligners_fill_their_places(index: Index, tokenizer: Tokenizer, when_full: str) -> None:
    short = 60
    for n in (3, 6):
        packing = Packing(max_demonstrations=n, max_demonstration_tokens=short, when_full=when_full)  # type: ignore[arg-type]
        recipe = Recipe("filled", packing=packing)
        aligner = Aligner.from_recipe(recipe, index=index, tokenizer=tokenizer)
        whole = aligner.retrieve([one.text for one in QUERIES], k=len(index.pool))
        counts = aligner.packer.token_counts(index.pool.ids)
        for query, prompt, ranking in zip(QUERIES, aligner.pack_many(QUERIES), whole, strict=True):
            assert isinstance(prompt, Prompt)
            nearest = [hit.id for hit in ranking if counts[hit.id] <= short][:n]
            assert [one.id for one in prompt.demonstrations][::-1] == nearest
            assert aligner.pack(query.text).token_ids == prompt.token_ids


def test_only_the_published_recipe_leaves_places_empty() -> None:
    assert [name for name in packaged_recipes() if not Recipe.load(name).packing.refill] == ["ica", "ica-random"]
    assert Packing().refill
