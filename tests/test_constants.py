"""Constant demonstrations: depend on pool, number and seed only, and are what their kind says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragalign.constants import (
    ANSWERED_HEADING,
    UNANSWERED_HEADING,
    as_constants,
    circular_shift,
    diverse_constants,
    make_constants,
    random_answers,
    random_constants,
    unsupervised,
)
from ragalign.errors import ConfigError, DataError
from ragalign.pool import Pool
from ragalign.templates import PromptFile, Template, built_in
from ragalign.types import Demonstration, Turn

SOURCES = {"a": 30, "b": 9, "c": 3, "d": 1}
POOL = Pool.from_demonstrations(
    Demonstration(f"Q {source} {n}", f"A {source} {n}", source=source, metadata={"topic": f"t{n % 4}", "same": 1})
    for source, count in SOURCES.items()
    for n in range(count)
)
OTHER = Pool.from_demonstrations(Demonstration(f"R {n}", f"S {n}") for n in range(20))
KINDS = ["random", "diverse", "unsupervised", "circular_shift", "random_answer", "random_answer_ood"]


def options_of(kind: str) -> dict[str, object]:
    return {"answers": OTHER} if kind == "random_answer_ood" else {}


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(2, 12), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_the_same_seed_gives_the_same(kind: str, n: int, seed: int) -> None:
    chosen = make_constants(kind, POOL, n, seed, **options_of(kind))
    again = Pool.from_demonstrations(list(POOL))
    assert chosen == make_constants(kind, again, n, seed, **options_of(kind))
    assert len({one.id for one in chosen}) == len(chosen) == (n + 3 if kind == "unsupervised" else n)


@pytest.mark.parametrize("kind", KINDS)
def test_other_seeds_give_others(kind: str) -> None:
    drawn = [make_constants(kind, POOL, 8, seed, **options_of(kind)) for seed in range(20)]
    assert len({tuple(one.id for one in chosen) for chosen in drawn}) == 20


def test_random_ones_are_drawn_evenly() -> None:
    counts = Counter(one.id for seed in range(2000) for one in random_constants(POOL, 5, seed))
    expected = 2000 * 5 / len(POOL)
    assert set(counts) == set(POOL.ids)
    # Binomial: five standard deviations around the mean.
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())


@given(n=st.integers(0, len(POOL)), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_diverse_ones_are_spread_evenly(n: int, seed: int) -> None:
    counts = Counter(one.source for one in diverse_constants(POOL, n, seed))
    assert counts.total() == n
    for source, count in counts.items():
        # Whoever has fewer than another is used up, but for one of the last round.
        assert all(count >= other - 1 or count == SOURCES[source] for other in counts.values())
    if n >= len(SOURCES):
        assert set(counts) == set(SOURCES)


def test_diverse_ones_by_another_field() -> None:
    counts = Counter(one.metadata["topic"] for one in diverse_constants(POOL, 8, 0, by="topic"))
    assert counts == {"t0": 2, "t1": 2, "t2": 2, "t3": 2}
    for by in ("same", "missing"):
        with pytest.raises(DataError, match=f"'{by}' is the same in the whole pool; choose another field"):
            diverse_constants(POOL, 8, 0, by=by)


def test_unsupervised_ones_have_no_answers() -> None:
    chosen = unsupervised(POOL, 6, 1)
    assert [one.response == "" for one in chosen] == [True] * 6 + [False] * 3
    assert {one.instruction for one in chosen} <= set(POOL.instructions)
    shown = list(OTHER)[:2]
    chosen = unsupervised(POOL, 6, 1, answered=shown)
    assert chosen[6:] == tuple(shown)
    assert all(one.response == "" and one.instruction.startswith("Q") for one in chosen[:6])
    own = list(POOL)[:5]
    assert not {one.instruction for one in own} & {one.instruction for one in unsupervised(POOL, 38, 0, own)[:38]}


def test_shifted_answers_are_the_neighbours(shared_data: Path) -> None:
    chosen = circular_shift(POOL, 5, 3)
    right = random_constants(POOL, 5, 3)
    assert [one.instruction for one in chosen] == [one.instruction for one in right]
    assert [one.response for one in chosen] == [one.response for one in (*right[1:], right[0])]
    # As icl-alignment has it.
    folder = shared_data / "icl_alignment" / "qa_matching"
    base = [one.demonstration for one in PromptFile.load(folder / "urial.correct.txt").constants]
    published = [one.demonstration for one in PromptFile.load(folder / "urial.circular_shift.txt").constants]
    made = make_constants("circular_shift", POOL, 3, base=base)
    assert [(one.instruction, one.response) for one in made] == [(one.instruction, one.response) for one in published]


@given(n=st.integers(1, 15), seed=st.integers(0, 1000), ood=st.booleans())
@settings(max_examples=60, deadline=None)
def test_random_answers_are_never_right(n: int, seed: int, ood: bool) -> None:
    right = {one.instruction: one.response for one in POOL}
    source = OTHER if ood else POOL
    chosen = random_answers(POOL, n, seed, answers=source)
    assert [one.instruction for one in chosen] == [one.instruction for one in random_constants(POOL, n, seed)]
    for one in chosen:
        assert one.response != right[one.instruction]
        assert one.response == source.get(str(one.metadata["answer_of"])).response
    assert len({one.response for one in chosen}) == n


@pytest.mark.parametrize(
    ("kind", "n", "options", "message"),
    [
        ("best", 3, {}, "no constant demonstrations of kind 'best': use one of random, diverse"),
        ("random", 99, {}, "need 99 constant demonstrations, but there are only 43"),
        ("random", -1, {}, "need -1 constant demonstrations"),
        ("random", 3, {"by": "x"}, "of kind 'random' take no option 'by' .known: none."),
        ("diverse", 3, {"base": ()}, "of kind 'diverse' take no option 'base' .known: by."),
        ("unsupervised", 42, {}, "need 45"),
        ("circular_shift", 1, {}, "among two or more constant demonstrations, not 1"),
        ("circular_shift", 3, {"base": list(OTHER)[:2]}, "need 3 constant demonstrations, but there are only 2"),
        ("random_answer", 30, {}, "need 30 answers of other demonstrations, but the pool has only 13"),
        ("random_answer_ood", 3, {}, "out-of-domain answers come from another pool: set"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(kind: str, n: int, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_constants(kind, POOL, n, **options)


def test_headings_tell_unanswered_from_answered() -> None:
    template = Template.load("urial")
    constants = as_constants(template, unsupervised(POOL, 2, 0, answered=2))
    texts = [constant.text for constant in constants]
    assert texts[0].startswith(f"{UNANSWERED_HEADING}\n\n# Query:\n")
    assert texts[1].startswith("# Query:\n")
    assert texts[2].startswith(f"{ANSWERED_HEADING}\n\n# Query:\n")
    assert texts[3].startswith("# Query:\n")
    assert [text.count("# Answer:") for text in texts] == [0, 0, 1, 1]
    plain = as_constants(template, random_constants(POOL, 3, 0))
    assert [constant.text for constant in plain] == [template.render_demonstration(c.demonstration) for c in plain]
    alone = as_constants(template, unsupervised(POOL, 2, 0, answered=0))
    assert not any(UNANSWERED_HEADING in constant.text for constant in alone)


@pytest.mark.parametrize("form", built_in())
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_reads_back_as_a_prompt_file(form: str, kind: str) -> None:
    template = Template.load(form)
    chosen = make_constants(kind, POOL, 6, 2, **options_of(kind))
    preamble = template.render_preamble("Be kind.")
    text = preamble + "".join(constant.text for constant in as_constants(template, chosen))
    file = PromptFile.parse(text, form)
    assert file.text == text
    found = [one.demonstration for one in file.constants]
    assert [one.instruction.partition("\n")[0] for one in found] == [one.instruction for one in chosen]
    assert [one.response.partition("\n")[0] for one in found] == [one.response for one in chosen]
    assert file.render([Turn("user", "Hi?")]).endswith(template.cue)
