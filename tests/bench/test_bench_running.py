"""Runs through real engines: interrupted anywhere and resumed, they end with the same figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_model import build_tiny_model
from hypothesis import given
from hypothesis import strategies as st

from ragalign.bench import session
from ragalign.bench.cases import Cases, load_cases
from ragalign.bench.conditions import Condition, as_condition, decoded, guarded
from ragalign.bench.costs import _first_token
from ragalign.bench.figures import report_of
from ragalign.bench.running import Run
from ragalign.bench.scoring import Scorer
from ragalign.errors import ConfigError, DataError
from ragalign.generation import TransformersGenerator, VllmGenerator
from ragalign.generator import Generator
from ragalign.indexes import Index
from ragalign.packing import Packing
from ragalign.recipes import Recipe
from ragalign.tokenization import Tokenizer
from ragalign.types import Completion, Decoding, Prompt

LENGTH = Scorer("length", lambda record: float(len(record["response"])))


class Interrupted:
    """A real generator that the user interrupts after some completions."""

    def __init__(self, generator: Generator, after: int) -> None:
        self._generator, self._left = generator, after
        self.model, self.context_length = generator.model, generator.context_length
        self.shares_cpu = generator.shares_cpu

    def iter_generate(self, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[tuple[int, Completion]]:
        for found in self._generator.iter_generate(prompts, decoding):
            if decoding.max_tokens > 2:  # the warm-up asks for two
                if not self._left:
                    raise KeyboardInterrupt
                self._left -= 1
            yield found

    def reset_prefix_cache(self) -> bool:
        return self._generator.reset_prefix_cache()


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    path = tmp_path_factory.mktemp("cases") / "q.jsonl"
    rows: list[dict[str, Any]] = [{"id": f"q{n}", "instruction": f"Tell me about the number {n}."} for n in range(2)]
    rows += [{"id": "talk", "turns": ["Name three rivers.", "And lakes?"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_cases(path)


@pytest.fixture(scope="module")
def index(starter_index: Path) -> Index:
    return Index.open(starter_index)


@pytest.fixture(scope="module")
def conditions() -> list[Condition]:
    few = replace(Recipe.load("ica"), packing=Packing(max_demonstrations=2, max_tokens=400))
    chosen = [as_condition(Recipe.load("zero-shot")), as_condition(few, "ica")]
    return guarded(decoded(chosen, lambda one: replace(one, temperature=0.0, max_tokens=4, n=1, seed=0)))


def make(folder: Path, conditions: list[Condition], cases: Cases, index: Index) -> Run:
    return Run(folder, conditions, cases, {"": index}, model="tiny")


def figures(run: Run) -> dict[str, Any]:
    """All that a report says; speed is not measured here."""
    report = report_of(run, session.score(run, LENGTH), baseline="zero-shot").to_dict()
    return json.loads(json.dumps(report))


def interrupt(run: Run, generator: Generator, tokenizer: Tokenizer, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run.generate(Interrupted(generator, after), tokenizer)  # type: ignore[arg-type]  # asked for no more than that


def check_every_interruption(
    engine: Generator, model: Path, conditions: list[Condition], cases: Cases, index: Index, tmp_path: Path
) -> dict[str, Any]:
    tokenizer = Tokenizer.load(model)
    whole = make(tmp_path / "whole", conditions, cases, index)
    n_all = whole.n_missing
    assert n_all == 2 * (2 + 2)
    assert whole.generate(engine, tokenizer) == []
    assert whole.is_finished
    expected = figures(whole)
    # Within the first turn, between the turns, between the conditions, and just before the end.
    for after in (1, 3, 4, 7):
        folder = tmp_path / f"after-{after}"
        interrupt(make(folder, conditions, cases, index), engine, tokenizer, after)
        run = make(folder, conditions, cases, index)
        assert run.n_missing == n_all - after, "what was answered is kept"
        # A kill may also cut a line off.
        written = sorted(folder.glob("conditions/*/turn-*.jsonl"))
        if written:
            with written[-1].open("a") as file:
                file.write('{"id": "q1", "instr')
        run.generate(engine, tokenizer)
        assert run.is_finished
        assert figures(make(folder, conditions, cases, index)) == expected, f"interrupted after {after}"
    # Again and again in one folder, and while cached tokens are measured again.
    folder = tmp_path / "often"
    for after in (1, 1, 3, 2):
        interrupt(make(folder, conditions, cases, index), engine, tokenizer, after)
    run = make(folder, conditions, cases, index)
    assert not run.is_finished
    run.generate(engine, tokenizer)
    assert figures(run) == expected
    return expected


@pytest.mark.slow
def test_interrupted_anywhere_with_transformers(
    tiny_model: Path, conditions: list[Condition], cases: Cases, index: Index, tmp_path: Path
) -> None:
    with TransformersGenerator(tiny_model, dtype="float32", device="cpu", batch_size=4) as engine:
        found = check_every_interruption(engine, tiny_model, conditions, cases, index, tmp_path)
    by_name = {one["name"]: one for one in found["bench"]["conditions"]}
    assert by_name["ica"]["costs"]["prefilled_tokens"] is None, "transformers keeps no prefix cache"
    assert by_name["ica"]["costs"]["n"] == 4
    assert by_name["ica"]["quality"]["estimate"]["n"] == 4


def test_interrupted_anywhere_with_vllm(
    vllm_engine: VllmGenerator,
    tiny_model: Path,
    conditions: list[Condition],
    cases: Cases,
    index: Index,
    tmp_path: Path,
) -> None:
    found = check_every_interruption(vllm_engine, tiny_model, conditions, cases, index, tmp_path)
    # The system prompt is shared by all, retrieved demonstrations by few.
    zero, ica = (one["costs"] for one in found["bench"]["conditions"])
    assert 0 < zero["prefilled_tokens"]["value"] < zero["prompt_tokens"]["value"]
    assert 0 < ica["prefilled_tokens"]["value"] <= ica["prompt_tokens"]["value"]


def test_tokens_prefilled_are_what_vllm_counts(
    vllm_engine: VllmGenerator,
    tiny_model: Path,
    conditions: list[Condition],
    cases: Cases,
    index: Index,
    tmp_path: Path,
) -> None:
    [zero, _] = conditions
    run = make(tmp_path / "run", [zero], cases, index)
    tokenizer = Tokenizer.load(tiny_model)
    run.generate(vllm_engine, tokenizer)  # a warm engine: what follows is asked for once
    again = make(tmp_path / "again", [zero], cases, index)
    before = vllm_engine.prefix_cache_counters()
    again.generate(vllm_engine, tokenizer)
    queries, hits = (now - then for now, then in zip(vllm_engine.prefix_cache_counters(), before, strict=True))
    [measured] = report_of(again).bench.conditions  # type: ignore[union-attr]
    costs = measured.costs
    assert costs.prefilled_tokens is not None
    warm_up = list(again.answered()[0].rows[0].values())[:2]
    n_warm = sum(row["n_prompt_tokens"] for row in warm_up)
    assert costs.n * costs.prompt_tokens.value == pytest.approx(queries - n_warm)
    # The warm-up's own hits come before the cache is emptied; they are at most its prompts.
    n_hits = costs.n * (costs.prompt_tokens.value - costs.prefilled_tokens.value)
    assert hits - n_warm <= n_hits <= hits
    assert (costs.first_token, costs.requests_per_s, costs.price) == (None, None, None), "speed was not measured"


def test_another_run_is_not_gone_on_with(
    conditions: list[Condition], cases: Cases, index: Index, tmp_path: Path
) -> None:
    make(tmp_path, conditions, cases, index)
    (tmp_path / "conditions" / "ica").mkdir(parents=True)
    hotter = decoded(conditions, lambda one: replace(one, temperature=0.5))
    with pytest.raises(ConfigError, match=r"temperature was 0.0 and is 0.5.*Choose another output"):
        make(tmp_path, hotter, cases, index)
    with pytest.raises(ConfigError, match=r"prompts\.n was 3 and is 2"):
        make(tmp_path, conditions, cases.first(2), index)
    with pytest.raises(ConfigError, match=r"conditions\.ica was .* and is not set now"):
        make(tmp_path, conditions[:1], cases, index)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match=r"run\.json"):
        make(tmp_path, conditions, cases, index)
    (tmp_path / "run.json").unlink()
    with pytest.raises(DataError, match=r"has other files, but no run\.json"):
        make(tmp_path, conditions, cases, index)


def test_completions_of_another_model_are_refused(
    tiny_model: Path, conditions: list[Condition], cases: Cases, index: Index, tmp_path: Path
) -> None:
    other = build_tiny_model(tmp_path / "other")
    run = make(tmp_path / "run", conditions[:1], cases.first(2), index)
    with TransformersGenerator(tiny_model) as engine:
        interrupt(run, engine, Tokenizer.load(tiny_model), 1)
    with TransformersGenerator(other) as engine, pytest.raises(DataError, match="made with the model"):
        run.generate(engine, Tokenizer.load(other))
    line = next((tmp_path / "run").glob("conditions/*/turn-1.jsonl"))
    line.write_text("no completion\n")
    with pytest.raises(DataError, match=r"turn-1\.jsonl: line 1 was not written by this command"):
        _ = run.n_missing


def test_names_that_no_file_system_takes_keep_apart(cases: Cases, index: Index, tmp_path: Path) -> None:
    names = ["a/b", "a:b", "a b", "x" * 300, "x" * 300 + "y", "temperature 0.7, order most similar last"]
    conditions = [as_condition(Recipe.load("zero-shot"), name) for name in names]
    run = make(tmp_path, conditions, cases, index)
    places = {str(run._places[name]) for name in names}
    assert len(places) == len(names)
    assert all(len(Path(place).name) < 100 for place in places)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=12))
def test_no_decile_passes_the_median(seconds: list[float]) -> None:
    found = _first_token([*seconds, 0.00604])
    assert found is not None
    assert found.low <= found.median <= found.high
    same = _first_token([0.00604] * 4)
    assert same is not None
    assert same.low == same.median == same.high
