"""Greedy search for constant demonstrations: against brute force, within its budget, interrupted, and honest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.bench.cases import Cases, load_cases
from ragalign.bench.scoring import Scorer, make_scorers
from ragalign.errors import ConfigError, DataError
from ragalign.generation import TransformersGenerator
from ragalign.generator import Generator
from ragalign.pool import Pool
from ragalign.recipes import ConstantSettings, Recipe
from ragalign.studies.selection import Search
from ragalign.studies.selection_result import SearchOptions, SelectionResult
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding, Demonstration

N_PROMPTS = 8
BEGUN = Demonstration("Name a river.", "The Nile.")
POOL = Pool.from_demonstrations(Demonstration(f"Name {n} things.", f"Thing {n}.") for n in range(6))


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on its arguments alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


def noise(record: Mapping[str, Any]) -> float:
    """Nothing but noise: whatever the search finds is no better than what it began with."""
    return draw(record["id"], *record["demonstrations"])


def worth(ids: Sequence[str]) -> float:
    return sum(draw("worth", one) for one in ids) - 0.45 * len(ids)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    path = tmp_path_factory.mktemp("cases") / "q.jsonl"
    path.write_text("".join(json.dumps({"id": f"q{n}", "instruction": f"Say {n}."}) + "\n" for n in range(N_PROMPTS)))
    return load_cases(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "one.jsonl").write_text(json.dumps({"instruction": BEGUN.instruction, "response": BEGUN.response}) + "\n")
    loaded = replace(Recipe.load("zero-shot"), folder=folder, constants=ConstantSettings(file="one.jsonl"))
    return replace(loaded, decoding=Decoding(temperature=0.0, max_tokens=1, seed=0))


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[TransformersGenerator]:
    with TransformersGenerator(tiny_model, dtype="float32", device="cpu", batch_size=N_PROMPTS) as generator:
        yield generator


Find = Callable[..., SelectionResult]


@pytest.fixture
def search(recipe: Recipe, cases: Cases, tmp_path: Path) -> Callable[..., Search]:
    def make(score: Callable[[Mapping[str, Any]], float], folder: str = "found", **options: Any) -> Search:
        chosen = SearchOptions(**{"candidates": 5, "add": 3, **options})
        return Search(tmp_path / folder, recipe, POOL, cases, Scorer("score", score), model="tiny", options=chosen)

    return make


@pytest.fixture
def start(engine: TransformersGenerator, tiny_model: Path) -> Callable[[], tuple[Generator, Tokenizer]]:
    tokenizer = Tokenizer.load(tiny_model)
    return lambda: (engine, tokenizer)


def test_it_takes_the_steps_of_brute_force(search: Callable[..., Search], start: Any) -> None:
    made = search(lambda record: worth(record["demonstrations"]))
    found = made.run(start)
    chosen, best = [BEGUN.id], worth([BEGUN.id])
    for step in found.steps:
        scores = {one: worth([*chosen, one]) for one in made._candidates if one not in chosen}
        winner = max(scores, key=lambda one: scores[one])
        assert (step.n_tried, step.is_complete) == (len(scores), True)
        if scores[winner] <= best:
            assert step.added is None
            break
        chosen, best = [*chosen, winner], scores[winner]
        assert (step.added, step.score) == (winner, pytest.approx(best))
    assert [one.id for one in found.constants] == chosen
    assert found.n_evaluations == 1 + sum(step.n_tried for step in found.steps)
    # The metric is the same for all prompts, so nothing is too good to be true.
    assert found.optimism == pytest.approx(0)
    assert found.held_out_gain.value == pytest.approx(best - worth([BEGUN.id]))


def test_where_lower_is_better_it_takes_the_mirrored_steps(
    search: Callable[..., Search], start: Any, recipe: Recipe, cases: Cases, tmp_path: Path
) -> None:
    higher = search(lambda record: worth(record["demonstrations"])).run(start)
    scorer = Scorer("score", lambda record: -worth(record["demonstrations"]), lower_is_better=True)
    options = SearchOptions(candidates=5, add=3)
    lower = Search(tmp_path / "lower", recipe, POOL, cases, scorer, model="tiny", options=options).run(start)
    assert [step.added for step in lower.steps] == [step.added for step in higher.steps]
    assert [step.score for step in lower.steps] == pytest.approx([-step.score for step in higher.steps])
    # A gain is an improvement, whichever way the metric points.
    assert lower.held_out_gain.value == pytest.approx(higher.held_out_gain.value)
    assert lower.held_out_gain.low == pytest.approx(higher.held_out_gain.low)
    assert lower.search_gain.value > 0


def test_reference_likelihood_answers_nothing(
    recipe: Recipe, cases: Cases, engine: TransformersGenerator, start: Any, tmp_path: Path, tiny_model: Path
) -> None:
    known = replace(cases, cases=tuple(replace(one, references=((f"It is {one.id}.",),)) for one in cases.cases))
    [scorer] = make_scorers(["reference-likelihood"])[:1]
    made = Search(
        tmp_path / "found", recipe, POOL, known, scorer, model="tiny", options=SearchOptions(candidates=2, add=1)
    )

    class Reading:
        """The engine without a way to answer."""

        model, context_length, shares_cpu = engine.model, engine.context_length, True
        distributions = staticmethod(engine.distributions)
        token_logprobs = staticmethod(engine.token_logprobs)

    tokenizer = Tokenizer.load(tiny_model)
    found = made.run(lambda: (Reading(), tokenizer))  # type: ignore[arg-type, return-value]
    [step] = found.steps
    scores = {key: values for key, values in made.known.items() if not key[1]}
    means = {ids: np.mean([value for value in values.values() if value]) for (ids, _), values in scores.items()}
    begun = means[BEGUN.id,]
    best = min(means.values())
    assert step.score == pytest.approx(best)
    assert (step.added is None) == (best == begun), "lower is better"


def test_the_held_out_check_reports_the_optimism_of_noise(search: Callable[..., Search], start: Any) -> None:
    made = search(noise)
    found = made.run(start)
    ids = [one.id for one in found.constants]
    assert len(ids) > 1, "the best of several noisy means looks better"

    def gain(names: Sequence[str]) -> float:
        after = [draw(name, *ids) for name in names]
        return float(np.mean(after) - np.mean([draw(name, BEGUN.id) for name in names]))

    seen, held = ([case.id for case in one.cases] for one in (made.seen, made.held_out))
    assert sorted(seen + held) == [f"q{n}" for n in range(N_PROMPTS)]
    assert len(held) == N_PROMPTS // 2
    assert found.search_gain.value == pytest.approx(gain(seen))
    assert found.held_out_gain.value == pytest.approx(gain(held))
    assert found.optimism == pytest.approx(gain(seen) - gain(held))
    assert found.held_out_gain.low <= found.held_out_gain.value <= found.held_out_gain.high


def test_the_budget_bounds_what_is_measured(search: Callable[..., Search], start: Any) -> None:
    asked = []
    found = search(noise, max_evaluations=4).run(start, on_evaluation=lambda n, most: asked.append((n, most)))
    assert asked == [(n, 4) for n in range(1, 5)]
    assert found.n_evaluations == 4
    [step] = found.steps
    assert (step.n_tried, step.is_complete) == (3, False)


def test_interrupted_it_goes_on_to_the_same_end(
    search: Callable[..., Search], start: Any, engine: TransformersGenerator, tmp_path: Path
) -> None:
    expected = search(noise, "whole").run(start)
    n_lines = len((tmp_path / "whole" / "evaluations.jsonl").read_text().splitlines())
    for after in (1, n_lines - 4):

        def stop(n: int, _: int, after: int = after) -> None:
            if n > after:
                raise KeyboardInterrupt

        folder = f"after-{after}"
        try:
            search(noise, folder).run(start, on_evaluation=stop)
        except KeyboardInterrupt:
            assert len((tmp_path / folder / "evaluations.jsonl").read_text().splitlines()) == after
            with (tmp_path / folder / "evaluations.jsonl").open("a") as file:
                file.write('{"constants": ["')
        assert search(noise, folder).run(start) == expected

    def never() -> tuple[Generator, Tokenizer]:
        raise AssertionError("what was measured is not measured again")

    assert search(noise, "whole").run(never) == expected


def test_the_recipe_is_one_that_loads(
    search: Callable[..., Search], start: Any, recipe: Recipe, tmp_path: Path
) -> None:
    found = search(noise).run(start)
    loaded = Recipe.load(tmp_path / "found" / "recipe.toml")
    template, constants = loaded.make_template()
    assert [one.demonstration.id for one in constants] == [one.id for one in found.constants]
    assert template.fingerprint == recipe.make_template()[0].fingerprint
    assert template.preamble == recipe.make_template()[0].preamble
    assert loaded.decoding == recipe.decoding
    assert loaded.packing.max_demonstrations >= len(constants)
    assert not list((tmp_path / "found").glob("trial*")), "no leftovers"


def test_wrong_searches_are_refused(
    search: Callable[..., Search], recipe: Recipe, cases: Cases, start: Any, tmp_path: Path
) -> None:
    scorer = Scorer("score", noise)

    def refuse(error: type[Exception], message: str, **changes: Any) -> None:
        given = {"recipe": recipe, "pool": POOL, "cases": cases, **changes}
        with pytest.raises(error, match=message):
            Search(tmp_path / "x", given["recipe"], given["pool"], given["cases"], scorer, model="tiny")

    refuse(ConfigError, "retrieves: start from a recipe without retrieval", recipe=Recipe.load("ica"))
    refuse(ConfigError, "too few to hold out 50% of them", cases=cases.first(1))
    refuse(ConfigError, "no demonstrations except the prompts", pool=Pool.from_demonstrations([BEGUN]))
    own = Pool.from_demonstrations([Demonstration(case.query.text, "x") for case in cases.cases])
    refuse(ConfigError, "no demonstrations except the prompts", pool=own)
    for options in ({"add": 0}, {"candidates": 0}, {"max_evaluations": 0}, {"held_out": 1.0}, {"held_out": 0.0}):
        with pytest.raises(ConfigError, match=r"must be at least 1|between 0 and 1"):
            SearchOptions(**options)  # type: ignore[arg-type]
    search(noise).run(start)
    with pytest.raises(ConfigError, match=r"other settings: seed was 0 and is 1"):
        search(noise, seed=1)
    evaluations = tmp_path / "found" / "evaluations.jsonl"
    evaluations.write_text("nonsense\n" + evaluations.read_text())
    with pytest.raises(DataError, match=r"evaluations\.jsonl: line 1 was not written by this command"):
        search(noise)
    (tmp_path / "found" / "search.json").write_text("{")
    with pytest.raises(DataError, match=r"search\.json is damaged"):
        search(noise)


def test_measured_gains_choose_the_candidates(recipe: Recipe, cases: Cases, tmp_path: Path) -> None:
    ranking = [POOL.ids[place] for place in (4, 1, 3, 0)]

    def candidates(folder: str, order: list[str]) -> list[str]:
        options = SearchOptions(candidates=2)
        Search(tmp_path / folder, recipe, POOL, cases, Scorer("s", noise), model="tiny", options=options, ranking=order)
        found: list[str] = json.loads((tmp_path / folder / "search.json").read_text())["candidates"]
        return found

    assert candidates("found", ["not in the pool", *ranking]) == ranking[:2]
    with pytest.raises(ConfigError, match="no demonstration whose gain was measured"):
        candidates("none", ["not in the pool"])
