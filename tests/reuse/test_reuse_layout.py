"""What a recipe's [reuse] table makes of prompts: kept demonstrations in one run, and nothing approximate unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ragalign.errors import ConfigError, DataError
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import Recipe, data_folder
from ragalign.reuse.layout import ReusingPacker, manifest_for, piece_ids
from ragalign.reuse.opening import default_store, open_store
from ragalign.reuse.pieces import Piece, piece_name
from ragalign.reuse.settings import ReuseSettings, n_bytes
from ragalign.reuse.store import Store
from ragalign.tokenization import Tokenizer
from ragalign.types import Hit, Turn

PIECE = Piece(torch.zeros(2, 1, 1, 1, 2))


@pytest.fixture(params=["reuse", "ica"])
def packer(request: pytest.FixtureRequest, tiny_model: Path) -> Packer:
    recipe = Recipe.load(request.param)
    template, constants = recipe.make_template()
    pool = Pool.load(data_folder() / "starter.jsonl")
    packing = Packing(max_demonstrations=12, max_tokens=100_000, max_demonstration_tokens=100_000)
    return Packer(template, Tokenizer.load(tiny_model), pool, packing=packing, constants=constants)


def hits(packer: Packer, n: int = 8) -> list[Hit]:
    return [Hit(packer.pool[row].id, 1.0 - row / 100, row + 1) for row in range(n)]


def filled(packer: Packer, folder: Path, *, without: tuple[str, ...] = ()) -> Store:
    store = Store.create(folder, manifest_for(packer))
    left_out = {piece_name(ids) for pair in packer.token_ids(without) for ids in pair}
    for ids in piece_ids(packer):
        if piece_name(ids) not in left_out:
            store.write(piece_name(ids), PIECE)
    store.write(store.prefix_name, PIECE)
    return store


@pytest.mark.parametrize("real", [0, 1, 2])
def test_kept_demonstrations_come_first_then_missing_ones_then_the_most_similar(
    packer: Packer, tmp_path: Path, real: int
) -> None:
    found = hits(packer)
    lost = (found[3].id, found[6].id)
    store = filled(packer, tmp_path / "kv", without=lost)
    prompt = ReusingPacker(packer, store, real).pack([Turn("user", "Why?")], found)
    ids = [used.id for used in prompt.demonstrations if used.score is not None]
    n_constants = len(prompt.demonstrations) - len(ids)
    best_first = [hit.id for hit in found]
    wanted_real = best_first[:real][::-1]
    kept = [id_ for id_ in best_first[real:][::-1] if id_ not in lost]
    assert ids == [*kept, *[id_ for id_ in best_first[real:][::-1] if id_ in lost], *wanted_real]
    assert prompt.reuse is not None
    assert prompt.reuse.lengths == tuple(
        used.n_tokens for used in prompt.demonstrations[n_constants : n_constants + len(kept)]
    )
    assert prompt.reuse.n_prefix_tokens == prompt.demonstrations[n_constants].start
    assert [used.id for used in prompt.reused] == kept
    assert tuple(prompt.ids[: prompt.reuse.n_prefix_tokens].tolist()) == store.manifest.prefix_ids
    n_kept, n_reused = len(kept), sum(prompt.reuse.lengths)
    packs = ReusingPacker(packer, store, real)
    assert packs.outcomes(prompt, n_reused) == {"hit": n_kept, "failed": 0, "miss": len({*lost} - {*wanted_real})}
    assert packs.outcomes(prompt, n_reused - 1) == packs.outcomes(prompt, n_reused) | {"hit": n_kept - 1, "failed": 1}
    assert packs.outcomes(prompt, None) == packs.outcomes(prompt, n_reused), "an engine that does not say"
    # Still a prompt like any other.
    tokenizer = packer.tokenizer
    assert prompt.token_ids == [*tokenizer.prefix_ids, *tokenizer.encode(prompt.text), *tokenizer.suffix_ids]


def test_a_system_turn_of_its_own_or_an_empty_store_makes_a_plain_prompt(packer: Packer, tmp_path: Path) -> None:
    store = filled(packer, tmp_path / "kv")
    turns = [Turn("system", "Answer in rhymes."), Turn("user", "Why?")]
    reusing = ReusingPacker(packer, store)
    plain = packer.pack(turns, hits(packer))
    if plain.token_ids[: len(store.manifest.prefix_ids)] != list(store.manifest.prefix_ids):
        assert reusing.pack(turns, hits(packer)) == plain
        assert plain.reused == ()
        assert reusing.outcomes(plain, 0) == {"other_prefix": len(hits(packer))}
    for name in store.names():
        store.remove(name)
    assert reusing.pack([Turn("user", "Why?")], hits(packer)) == packer.pack([Turn("user", "Why?")], hits(packer))


def test_a_store_of_other_prompts_is_refused(packer: Packer, tmp_path: Path) -> None:
    store = filled(packer, tmp_path / "kv")
    assert open_store(store.folder, packer).key == store.key
    template = replace(packer.template, opening="Query number one:\n")
    other = Packer(template, packer.tokenizer, packer.pool, constants=packer.constants)
    with pytest.raises(ConfigError, match="template"):
        open_store(store.folder, other)
    with pytest.raises(DataError, match="kv build"):
        open_store(tmp_path / "nothing", packer)


def test_reuse_and_a_planner_are_alternatives(tmp_path: Path) -> None:
    (tmp_path / "both.toml").write_text('[planner]\nstrategy = "relax"\n[reuse]\nenabled = true\n')
    with pytest.raises(ConfigError, match="cannot be combined") as caught:
        Recipe.load(tmp_path / "both.toml")
    assert "\n" not in str(caught.value)


def test_settings_out_of_range_are_refused_and_sizes_have_units() -> None:
    assert (n_bytes("8 GB", "x"), n_bytes("1.5KiB", "x"), n_bytes(7, "x")) == (8_000_000_000, 1536, 7)
    for wrong in ({"real": -1}, {"memory": "many"}, {"gpu_memory": -5}, {"memory": "-1 GB"}):
        with pytest.raises(ConfigError):
            ReuseSettings(**wrong)  # type: ignore[arg-type]


def test_each_recipe_and_model_has_a_folder_beside_the_index() -> None:
    assert default_store("indexes/mine/", "reuse", "org/some-model") == Path("indexes/mine.kv/reuse-some-model")
    assert default_store("indexes/mine", "reuse", "./llama/") == Path("indexes/mine.kv/reuse-llama")
