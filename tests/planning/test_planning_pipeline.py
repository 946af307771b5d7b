"""Planning in the pipeline: a recipe's table, the aligner, the engine, the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command

from ragalign import Aligner
from ragalign.errors import ConfigError
from ragalign.generation import VllmGenerator
from ragalign.planning import PrefixCache
from ragalign.recipes import Recipe
from ragalign.types import Decoding, Prompt, Query, Turn

ONE_TOKEN = Decoding(temperature=0.0, max_tokens=1)
RECIPE = """
[template]
form = "ica"
[packing]
max_tokens = 1200
[planner]
strategy = "relax"
min_relevance = 0.9
block_size = 32
"""
QUESTIONS = [f"{start} {what}?" for what in ("bread", "a poem", "a letter") for start in ("How do I make", "Explain")]


@pytest.fixture
def ragalign(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `ragalign` in this process."""
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "planned.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("queries") / "queries.jsonl"
    rows = [{"id": str(n), "instruction": text} for n, text in enumerate(QUESTIONS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_recipe_says_how_to_plan(recipe: Path, tmp_path: Path) -> None:
    planner = Recipe.load(recipe).planner
    assert (planner.strategy, planner.min_relevance, planner.personal, planner.block_size) == ("relax", 0.9, 2, 32)
    assert Recipe.load("ica").planner.strategy == "none"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[planner]\nmin_relevance = 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="min_relevance must be between 0 and 1, not 2"):
        Recipe.load(wrong)


def test_generate_asks_in_planned_order_and_answers_in_input_order(
    recipe: Path, starter_index: Path, tiny_model: Path, vllm_engine: VllmGenerator
) -> None:
    def cached(name: str | Path, mark: str) -> tuple[int, int]:
        aligner = Aligner.from_recipe(name, index=starter_index, model=vllm_engine, tokenizer=tiny_model)
        # A system turn that no other test has, so that the engine has seen no such beginning.
        asked = [Query(str(n), (Turn("system", mark), Turn("user", text))) for n, text in enumerate(QUESTIONS)]
        plan = aligner.plan(asked, decoding=ONE_TOKEN)
        prompts = [prompt for prompt in plan.prompts if isinstance(prompt, Prompt)]
        completions = aligner.generate(asked, decoding=ONE_TOKEN)
        assert [one.prompt.text for one in completions] == [prompt.text for prompt in prompts]
        cache = PrefixCache(32)
        expected = {position: cache.ask(prompts[position].ids) for position in plan.order}
        assert [one.n_cached_tokens for one in completions] == [expected[n] for n in range(len(asked))]
        return sum(expected.values()), sum(len(prompt.ids) for prompt in prompts)

    plain, planned = cached("ica", "Plain."), cached(recipe, "Planned.")
    assert planned[0] / planned[1] > 3 * plain[0] / plain[1]


def test_chat_steers_and_learns(
    recipe: Path, starter_index: Path, tiny_model: Path, vllm_engine: VllmGenerator
) -> None:
    aligner = Aligner.from_recipe(recipe, index=starter_index, model=vllm_engine, tokenizer=tiny_model)
    first = aligner.chat("How do I write a very long letter?", decoding=ONE_TOKEN)
    turns = [
        {"role": "user", "content": "How do I write a very long letter?"},
        {"role": "assistant", "content": first.text or "So."},
        {"role": "user", "content": "And a tiger?"},
    ]
    again = aligner.chat(turns, decoding=ONE_TOKEN)
    assert [one.id for one in again.prompt.demonstrations] == [one.id for one in first.prompt.demonstrations]
    assert (again.n_cached_tokens or 0) >= first.prompt.n_demonstration_tokens // 32 * 32
    assert aligner.online.memory.n_tokens >= first.prompt.n_demonstration_tokens


def test_plan_shows_the_frontier(
    ragalign: Command, starter_index: Path, tiny_model: Path, queries: Path, recipe: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "plan.svg"
    given = ("plan", starter_index, "--queries", queries, "--tokenizer", tiny_model, "--recipe", recipe)
    run = ragalign(*given, "--floor", "0.9", "--candidates", "60", "--out", picture, "--json")
    assert run.returncode == 0, run.stderr
    points = [json.loads(line) for line in run.stdout.splitlines()]
    points, reused = points[:6], points[6:]
    assert [one["strategy"] for one in points] == ["none", "reorder", "reorder", "relax", "backbone", "hybrid"]
    by_name = {one["strategy"]: one for one in points}
    assert by_name["none"]["relevance"] == by_name["reorder"]["relevance"] == 1
    assert by_name["relax"]["n_prefilled"] <= points[1]["n_prefilled"] + 32
    assert points[2]["n_prefilled"] < points[0]["n_prefilled"]  # reordered, nothing pinned
    for one in points:
        assert one["relevance"] >= 0.9 - 1e-4
        assert one["reuse_bound"] <= one["n_prefilled"] <= one["n_prompt_tokens"]
        assert one["prefix_bound"] <= one["n_prefilled"] + 1
    assert [(one["strategy"], one["real"]) for one in reused] == [("reuse", 0), ("reuse", 1), ("reuse", 2)]
    computed = [one["n_prefilled"] for one in reused]
    assert computed == sorted(computed)
    assert computed[0] < 0.5 * points[0]["n_prefilled"]
    for one in reused:
        assert one["loaded_bytes"] > 0
        assert one["n_prefilled"] + one["n_loaded"] <= one["n_prompt_tokens"] == points[0]["n_prompt_tokens"]
    svg = picture.read_text(encoding="utf-8")
    assert svg.startswith("<svg")
    assert all(name in svg for name in by_name)
    table = ragalign(*given, "--floor", "0.9", "--cache-tokens", "4000")
    assert "prefilled" in table.stdout
    assert table.stdout.count("\n") == 10
    assert "reuse, 2 computed" in table.stdout
    wrong = ragalign(*given, "--out", "plan.png")
    assert wrong.returncode == 2
    assert "ends in .svg" in wrong.stderr
