"""Recipes that reuse keys and values in a benchmark: what is checked before an engine starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ragalign.bench.benchmark import Benchmark
from ragalign.bench.cases import Cases, load_cases
from ragalign.bench.conditions import as_condition
from ragalign.bench.running import Run
from ragalign.bench.session import Engine
from ragalign.bench.testbed import REUSED, World, world_folder
from ragalign.encoders import Encoder
from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.recipes import Recipe
from ragalign.reuse.store import Store
from ragalign.tokenization import Tokenizer


@pytest.fixture(scope="module")
def cases() -> Cases:
    return load_cases(world_folder() / "queries.jsonl").first(2)


def test_recipes_with_different_prefixes_need_runs_of_their_own(
    starter_index: Path, tiny_model: Path, minilm: Encoder, cases: Cases, tmp_path: Path
) -> None:
    index = Index.open(starter_index, encoder=minilm)
    kept = as_condition(Recipe.load("reuse"))
    more = as_condition(replace(kept.recipe, reuse=replace(kept.recipe.reuse, real=2)), "with two computed")
    ica = as_condition(replace(Recipe.load("ica"), reuse=kept.recipe.reuse), "another form")
    tokenizer = Tokenizer.load(tiny_model)
    run = Run(tmp_path / "same", [kept, more], cases, {"": index}, model="m")
    connector = run.connector(tokenizer)
    assert connector is not None
    assert Store(connector["kv_connector_extra_config"]["store"]).folder == tmp_path / "same" / "kv"
    assert run.settings["conditions"]["reuse"] != run.settings["conditions"]["with two computed"]
    other = Run(tmp_path / "other", [kept, ica], cases, {"": index}, model="m")
    with pytest.raises(ConfigError, match="run them separately") as caught:
        other.connector(tokenizer)
    assert "\n" not in str(caught.value)
    plain = Run(tmp_path / "plain", [as_condition(Recipe.load("ica"))], cases, {"": index}, model="m")
    assert plain.connector(tokenizer) is None


def test_only_vllm_reuses(tiny_model: Path, cases: Cases, tmp_path: Path) -> None:
    engine = Engine(str(tiny_model), "transformers")
    with pytest.raises(ConfigError, match="needs the backend vllm"):
        Benchmark(tmp_path / "run", [as_condition(Recipe.load("reuse"))], cases, engine, indexes=lambda _: {})
    names = {condition.name for condition in World(cases, {}).conditions(reuse=False)}
    assert set(REUSED.values()) <= names
    assert not set(REUSED) & names
