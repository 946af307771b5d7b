"""Recipes: what they name, and what they say when it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.pool import Pool
from ragalign.recipes import Recipe, data_folder, packaged_recipes
from ragalign.types import Turn


def test_the_packaged_recipes_are_the_promised_ones() -> None:
    assert packaged_recipes() == ["hybrid", "ica", "ica-random", "reuse", "urial", "zero-shot"]


@pytest.mark.parametrize(
    ("name", "form", "n_constants", "retriever"),
    [
        ("zero-shot", "urial", 0, "none"),
        ("urial", "urial", 3, "none"),
        ("ica", "ica", 0, "dense"),
        ("ica-random", "ica", 0, "random"),
        ("hybrid", "urial", 3, "dense"),
    ],
)
def test_packaged_recipes_name_their_parts(name: str, form: str, n_constants: int, retriever: str) -> None:
    recipe = Recipe.load(name)
    template, constants = recipe.make_template()
    assert (template.name, len(constants), recipe.retriever.name) == (form, n_constants, retriever)
    assert recipe.description


def test_ica_has_the_notes_values() -> None:
    recipe = Recipe.load("ica")
    packing, decoding = recipe.packing, recipe.decoding
    assert (packing.max_demonstrations, packing.max_tokens, packing.max_demonstration_tokens) == (20, 3000, 500)
    assert (packing.when_full, packing.order) == ("stop", "most_similar_last")
    assert (decoding.temperature, decoding.top_p, decoding.max_tokens) == (0.7, 1.0, 1000)


def test_a_published_prompt_file_is_a_recipe(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "urial" / "prompts" / "inst_1k_v4.help.txt"
    (tmp_path / "own.toml").write_text(
        f'[template]\nprompt_file = "{source}"\nescape = "none"\n[retriever]\nname = "none"\n'
    )
    template, constants = Recipe.load(tmp_path / "own.toml").make_template()
    text = template.preamble + "".join(constant.text for constant in constants)
    assert text == source.read_text() + "\n"
    assert template.render_turns([Turn("user", "Hi")]) == "# Query:\n```\nHi\n```\n\n# Answer:\n```\n"


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    Pool.load(data_folder() / "constant.jsonl").save(tmp_path / "mine.jsonl")
    (tmp_path / "own.toml").write_text('[template]\nform = "plain"\n[constants]\nfile = "mine.jsonl"\n')
    assert len(Recipe.load(tmp_path / "own.toml").make_template()[1]) == 3


@pytest.mark.parametrize(
    ("table", "n", "n_answered"),
    [
        ('kind = "random"\nn = 5', 5, 5),
        ('kind = "diverse"\nby = "category"\nn = 10', 10, 10),
        ('kind = "unsupervised"\nn = 4\nfile = "package:constant.jsonl"', 7, 3),
        ('kind = "circular_shift"\nfile = "package:constant.jsonl"', 3, 3),
        ('kind = "random_answer"\nn = 4', 4, 4),
        ('kind = "random_answer_ood"\nn = 2\nanswers = "package:constant.jsonl"', 2, 2),
    ],
)
def test_constants_are_drawn_as_published(tmp_path: Path, table: str, n: int, n_answered: int) -> None:
    (tmp_path / "own.toml").write_text(
        f'[template]\nform = "urial"\n[constants]\npool = "package:starter.jsonl"\n{table}\n'
    )
    _, constants = Recipe.load(tmp_path / "own.toml").make_template()
    again = Recipe.load(tmp_path / "own.toml").make_template()[1]
    assert constants == again
    assert len(constants) == n
    assert sum(bool(one.demonstration.response) for one in constants) == n_answered
    assert sum("# Answer:" in one.text for one in constants) == n_answered
    if "by" in table:
        assert len({one.demonstration.metadata["category"] for one in constants}) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[packing]\nmax_tokenz = 3", r"\[packing\]: unknown key 'max_tokenz'; known are max_demonstrations"),
        ("[packing]\nmax_tokens = 'many'", "packing.max_tokens"),
        ("[packing]\nmax_tokens = -1", "max_tokens must be 0 or more"),
        ("[packing]\norder = 'best'", "most_similar_last"),
        ("[decoding]\npreset = 'wild'", "no decoding preset 'wild'"),
        ("retriever = 3", "retriever"),
        ("not toml", "own.toml"),
        ("[template]\nprompt_file = 'a.txt'\nsystem_file = 'b.txt'", "remove system_file"),
        ("[template]\nprompt_file = 'a.txt'\n[constants]\nfile = 'c.jsonl'", r"remove \[constants\]"),
    ],
)
def test_a_wrong_recipe_gets_one_clear_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


def test_constants_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    for table, message in (
        ('kind = "random"', "need a pool"),
        ('kind = "best"\npool = "package:starter.jsonl"', "kind 'best'"),
        ('kind = "random"\npool = "package:starter.jsonl"\nn = 500', "need 500"),
        ('kind = "random_answer_ood"\npool = "package:starter.jsonl"', "answers"),
    ):
        (tmp_path / "own.toml").write_text(f"[constants]\n{table}\n")
        with pytest.raises(ConfigError, match=message):
            Recipe.load(tmp_path / "own.toml").make_template()


def test_missing_recipes_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe 'icaa': use one of hybrid, ica"):
        Recipe.load("icaa")
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        Recipe.load(tmp_path / "nowhere.toml")
    (tmp_path / "own.toml").write_text('[template]\nprompt_file = "gone.txt"')
    with pytest.raises(DataError, match=r"gone\.txt"):
        Recipe.load(tmp_path / "own.toml").make_template()


class TestStarterPool:
    """The demonstrations that come with the package."""

    def test_it_has_every_promised_category(self) -> None:
        pool = Pool.load(data_folder() / "starter.jsonl")
        categories = {str(one.metadata["category"]) for one in pool}
        assert len(pool) >= 150
        assert categories == {
            "writing", "explaining", "coding", "maths", "planning", "advice", "extraction", "rewriting", "role_play",
            "safety",
        }  # fmt: skip

    def test_no_two_demonstrations_are_alike(self) -> None:
        pool = Pool.load(data_folder() / "starter.jsonl")
        assert len(pool.deduplicate(near=0.5)) == len(pool)
        assert len({one.source_id for one in pool}) == len(pool)

    def test_the_constants_are_not_in_it(self) -> None:
        pool, constants = (Pool.load(data_folder() / name) for name in ("starter.jsonl", "constant.jsonl"))
        assert len(constants) == 3
        assert not set(pool.ids) & set(constants.ids)

    def test_its_python_compiles(self) -> None:
        blocks = [
            block.partition("\n```")[0]
            for one in Pool.load(data_folder() / "starter.jsonl")
            for block in one.response.split("```python\n")[1:]
        ]
        assert len(blocks) > 10
        for block in blocks:
            compile(block, "demonstration", "exec")
