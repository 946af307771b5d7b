"""Sweeps from one TOML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragalign.bench.grid import Grid
from ragalign.errors import ConfigError


def grid(tmp_path: Path, text: str) -> Grid:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return Grid.load(path)


ALL = """
recipe = "ica"
design = "one-at-a-time"

[factors]
temperature = [0.0, 0.7]
top_p = [1.0, 0.9]
repetition_penalty = [1.0, 1.1]
frequency_penalty = [0.0, 0.5]
demonstrations = [9, 0, 100]
order = ["most_similar_last", "most_similar_first", "random"]
retriever = ["dense", "bm25", "hybrid", "random"]
encoder = ["sentence-transformers/all-MiniLM-L6-v2", "facebook/contriever"]
budget = [3000, 1000]
"retriever.options.seed" = [0, 1]
"""


def test_every_factor_of_the_papers_reaches_its_recipe(tmp_path: Path) -> None:
    conditions = grid(tmp_path, ALL.replace('"retriever.options.seed" = [0, 1]\n', "")).conditions()
    assert len(conditions) == 1 + 1 + 1 + 1 + 1 + 2 + 2 + 3 + 1 + 1
    first = conditions[0].recipe
    assert (first.decoding.temperature, first.packing.max_demonstrations) == (0.0, 9)

    def seen(what: str) -> set[object]:
        part, key = what.split(".")
        return {getattr(getattr(one.recipe, part), key) for one in conditions}

    assert seen("decoding.temperature") == {0.0, 0.7}
    assert seen("decoding.top_p") == {1.0, 0.9}
    # Over the prompt too, and over the output only.
    assert seen("decoding.repetition_penalty") == {1.0, 1.1}
    assert seen("decoding.frequency_penalty") == {0.0, 0.5}
    assert seen("packing.max_demonstrations") == {9, 0, 100}
    assert seen("packing.order") == {"most_similar_last", "most_similar_first", "random"}
    assert seen("packing.max_tokens") == {3000, 1000}
    assert seen("retriever.name") == {"dense", "bm25", "hybrid", "random"}
    assert {one.index for one in conditions} == {"sentence-transformers/all-MiniLM-L6-v2", "facebook/contriever"}
    # Nine others differ from the first in one level each.
    for one in conditions[1:]:
        assert sum(one.levels[factor] != conditions[0].levels[factor] for factor in one.levels) == 1
    assert len({one.name for one in conditions}) == len(conditions)


def test_a_full_grid_has_every_combination_once(tmp_path: Path) -> None:
    found = grid(tmp_path, "[factors]\ntemperature = [0.0, 0.7]\ndemonstrations = [1, 2, 3]\n").conditions()
    cells = [(one.recipe.decoding.temperature, one.recipe.packing.max_demonstrations) for one in found]
    assert cells == [(t, n) for t in (0.0, 0.7) for n in (1, 2, 3)]
    assert found[0].name == "temperature 0, demonstrations 1"


def test_a_key_of_a_recipe_can_vary(tmp_path: Path) -> None:
    text = 'recipe = "ica-random"\n[factors]\n"retriever.options.seed" = [0, 1]\n'
    assert [one.recipe.retriever.options["seed"] for one in grid(tmp_path, text).conditions()] == [0, 1]


def test_many_demonstrations_get_as_many_candidates(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text("[retriever]\ncandidates = 5\n")
    [one] = grid(tmp_path, 'recipe = "mine.toml"\n[factors]\ndemonstrations = [100]\n').conditions()
    assert one.recipe.retriever.candidates == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "factors is missing"),
        ("[factors]\n", "names nothing that varies"),
        ("[factors]\ntemperature = []\n", "'temperature' has no levels"),
        ("[factors]\nheat = [1]\n", "unknown factor 'heat'; use recipe, encoder, demonstrations"),
        ('[factors]\ntemperature = ["hot"]\n', "temperature"),
        ("[factors]\ntemperature = [9.0]\n", "temperature must be a number"),
        ('[factors]\norder = ["sideways"]\n', "order must be 'most_similar_last'"),
        ("[factors]\ntemperature = [0.5, 0.5]\n", "two recipes are called"),
        ('design = "some"\n[factors]\ntop_p = [1.0]\n', "design"),
        ("factor = 1\n", "factor"),
        ("[factors", "grid.toml"),
    ],
)
def test_wrong_grids_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        grid(tmp_path, text).conditions()
    assert "\n" not in str(caught.value)
