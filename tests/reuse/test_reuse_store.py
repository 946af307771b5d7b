"""The folder of kept keys and values: whole files, hashed, of one key; and the tiers in front of it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from ragalign.errors import ConfigError, DataError
from ragalign.reuse.building import verify
from ragalign.reuse.checking import ReuseLimits
from ragalign.reuse.eight_bit import BLOCK, PRECISIONS, packed, unpacked
from ragalign.reuse.fingerprint import weights_fingerprint
from ragalign.reuse.keeping import missing
from ragalign.reuse.opening import check_same_model
from ragalign.reuse.pieces import ForeignPieceError, Piece, piece_name, read_piece, write_piece
from ragalign.reuse.store import Store, StoreManifest
from ragalign.reuse.tiers import Tiers

KEY = "a" * 40
MANIFEST = StoreManifest((1, 2, 3), "template", "tokenizer")


def piece(n: int = 5, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Piece:
    return Piece(torch.randn(2, 3, n, 2, 8, generator=torch.Generator().manual_seed(seed)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_piece_comes_back_as_it_was_and_safetensors_reads_it_too(tmp_path: Path, dtype: torch.dtype) -> None:
    path, wanted = tmp_path / "ab" / "abc.safetensors", piece(dtype=dtype)
    write_piece(path, wanted, KEY)
    assert torch.equal(read_piece(path, KEY).kv, wanted.kv)
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        assert torch.equal(file.get_tensor("kv"), wanted.kv)
    assert [one.name for one in path.parent.iterdir()] == ["abc.safetensors"]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_piece(path, packed(piece(2).kv, "int8"), KEY)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        if content[position : position + 1] != b" ":  # only spaces of the header say nothing
            with pytest.raises(DataError, match="damaged"):
                read_piece(path, KEY)
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(DataError):
            read_piece(path, KEY)


def test_another_key_is_refused_with_what_differs(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    before = store.key
    store.bind({"weights": "a", "dtype": "bfloat16"}, {"files": {}})
    assert store.key != before
    assert Store(tmp_path / "kv").key == store.key
    Store(tmp_path / "kv").bind({"weights": "a", "dtype": "bfloat16"})
    with pytest.raises(ConfigError, match="dtype: bfloat16 there, float32 here"):
        Store(tmp_path / "kv").bind({"weights": "a", "dtype": "float32"})
    for other in (
        StoreManifest((1, 2), "template", "tokenizer"),
        StoreManifest((1, 2, 3), "another", "tokenizer"),
        StoreManifest((1, 2, 3), "template", "another"),
        StoreManifest((1, 2, 3), "template", "tokenizer", precision="int8"),
    ):
        with pytest.raises(ConfigError, match="another") as caught:
            Store.create(tmp_path / "kv", other)
        assert "\n" not in str(caught.value)


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="choose another folder"):
        Store.create(tmp_path, MANIFEST)
    with pytest.raises(DataError, match="kv build"):
        Store(tmp_path)
    for content in ("{", "[]", '{"format": 99}', json.dumps(MANIFEST.record() | {"prefix_ids": "x"})):
        (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(DataError):
            Store(tmp_path)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_eight_bits_take_half_the_space_and_err_by_their_step(precision: str, tmp_path: Path) -> None:
    wanted = piece(50, seed=1).kv
    small = packed(wanted, precision)  # type: ignore[arg-type]
    assert small.n_bytes < 0.6 * wanted.numel() * 2
    write_piece(tmp_path / "a.safetensors", small, KEY)
    back = unpacked(read_piece(tmp_path / "a.safetensors", KEY), torch.float32)
    assert back.shape == wanted.shape
    scales = small.scales.repeat_interleave(BLOCK, dim=2)[:, :, :50, :, None]
    step = 0.5 * scales if precision == "int8" else 0.07 * wanted.float().abs() + scales
    assert bool(((back - wanted.float()).abs() <= step + 1e-6).all())


def test_eight_bits_may_round_more_where_the_rest_is_exact() -> None:
    assert ReuseLimits.for_store(MANIFEST, difference=0.1) == ReuseLimits(difference=0.1)
    for precision in PRECISIONS[1:]:
        assert ReuseLimits.for_store(replace(MANIFEST, precision=precision)) == ReuseLimits(exact=0.05)
    assert ReuseLimits.for_store(replace(MANIFEST, model={"dtype": "float32"})) == ReuseLimits(exact=0.001)


def test_one_large_key_does_not_coarsen_other_heads_or_blocks() -> None:
    wanted = piece(3 * BLOCK, torch.float32).kv
    spoilt = wanted.clone()
    spoilt[0, 1, 0, 1, 0] = 1000.0
    plain, other = (unpacked(packed(kv, "int8"), torch.float32) for kv in (wanted, spoilt))
    changed = (plain != other).any(dim=-1).nonzero()
    assert {(*place[:2].tolist(), place[3].item()) for place in changed} <= {(0, 1, 1)}
    assert int(changed[:, 2].max()) < BLOCK


@given(st.lists(st.integers(0, 7), max_size=60), st.integers(0, 4))
def test_the_tiers_give_what_is_stored_and_stay_within_their_budget(asked: list[int], room: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "kv", MANIFEST)
        pieces = [piece(4 + number, seed=number) for number in range(8)]
        for number, one in enumerate(pieces):
            store.write(piece_name([number]), one)
        budget = room * pieces[-1].n_bytes
        tiers = Tiers(store, memory=budget, gpu_memory=10**9, device=torch.device("cpu"))
        recent: list[int] = []
        for number in asked:
            before = tiers.counts["from_disk"]
            assert torch.equal(tiers.get(piece_name([number])).kv, pieces[number].kv)
            assert tiers._host.n_bytes <= budget
            if number in recent[-room:] and room:
                assert tiers.counts["from_disk"] == before  # among the last used, however large those were
            recent = [one for one in recent if one != number] + [number]


def test_an_index_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 7, "dimensions": 384}')
    with pytest.raises(DataError, match="no store of keys and values"):
        Store(tmp_path)
    with pytest.raises(ConfigError, match="choose another folder"):
        Store.create(tmp_path, MANIFEST)
    assert "dimensions" in (tmp_path / "manifest.json").read_text()


def test_another_models_weights_are_refused_before_an_engine_starts(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
        (tmp_path / name / "config.json").write_text("{}")
        os.utime(tmp_path / name / "model.safetensors", (0, 0))  # as in an image
    store = Store.create(tmp_path / "kv", MANIFEST)
    check_same_model(store, tmp_path / "two")  # no engine has opened it
    weights, files = weights_fingerprint(tmp_path / "one", {})
    store.bind({"weights": weights, "dtype": "bfloat16"}, {"files": files})
    check_same_model(store, tmp_path / "one", "auto")
    check_same_model(store, tmp_path / "one", "bfloat16")
    with pytest.raises(ConfigError, match="another model"):
        check_same_model(store, tmp_path / "two")
    with pytest.raises(ConfigError, match="dtype: bfloat16 there, float32 here"):
        check_same_model(store, tmp_path / "one", "float32")


def test_what_writers_left_is_cleaned_up_and_whole_pieces_stay(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    whole, torn, aside = (piece_name([number]) for number in range(3))
    for name in (whole, torn, aside):
        store.write(name, piece())
    os.truncate(store.path(torn), store.path(torn).stat().st_size - 1)
    store.set_aside(aside)
    old, new = (store.path(whole).with_name(f".{name}.new") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half of it")
    os.utime(old, (0, 0))
    store.clean()
    assert list(store.names()) == [whole]
    assert not old.exists()
    assert new.exists()  # somebody can still be writing it


def test_a_store_that_is_built_again_gives_and_takes_nothing_of_the_old_one(tmp_path: Path) -> None:
    """An engine that runs on has the old store's settings in mind."""
    old = Store.create(tmp_path / "kv", MANIFEST)
    old.bind({"weights": "old"})
    kept, made, late = (piece_name([number]) for number in range(3))
    old.write(kept, piece())
    left = old.path(kept).read_bytes()
    shutil.rmtree(old.folder)
    new = Store.create(tmp_path / "kv", MANIFEST)
    new.bind({"weights": "new"})
    new.write(made, piece())
    with pytest.raises(ForeignPieceError, match="other settings"):
        old.read(made)
    with pytest.raises(DataError, match="built again with other settings"):
        old.write(late, piece())
    # What got there all the same is computed again.
    new.path(kept).parent.mkdir(parents=True, exist_ok=True)
    new.path(kept).write_bytes(left)
    [fault] = verify(new)
    assert str(new.path(kept)) in fault
    new.clean()
    assert list(new.names()) == [made]


def test_a_model_without_weight_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no weight files"):
        weights_fingerprint(tmp_path, {})


def test_a_copy_of_the_model_is_remembered(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    store.bind({"weights": "a"}, {"files": {"m": [1, 2, 3, "x"]}})
    Store(store.folder).bind({"weights": "a"}, {"files": {"m": [1, 4, 5, "x"]}})
    again = Store(store.folder)
    assert again.manifest.about == {"files": {"m": [1, 4, 5, "x"]}}
    assert again.key == store.key


def test_two_builds_at_once_are_one_too_many(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    with store.writing(), pytest.raises(DataError, match="another `ragalign kv build`"), Store(store.folder).writing():
        pass
    with store.writing():  # it is released
        assert Store(store.folder).key == store.key


def test_verify_sets_damaged_pieces_aside_so_that_they_are_computed_again(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    for number in range(3):
        store.write(piece_name([number]), piece())
    path = store.path(piece_name([1]))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    [fault] = verify(store)
    assert str(path) in fault
    assert missing(store, [[0], [1], [2]]) == [[1]]
    assert verify(store) == []


def test_what_cannot_be_read_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    name = piece_name([1])
    store.write(name, piece())

    def failing(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", failing)
        assert verify(store) == [f"{store.path(name)}: Permission denied"]
        store.clean()
    assert verify(store) == []
    assert list(store.names()) == [name]


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        store = Store.create(tmp_path / "kv", MANIFEST)
        store.write(piece_name([1]), piece())
    finally:
        os.umask(umask)
    for path in (store.folder / "manifest.json", store.path(piece_name([1]))):
        assert path.stat().st_mode & 0o777 == 0o640


def test_a_piece_is_mapped_and_outlives_its_file(tmp_path: Path) -> None:
    path, wanted = tmp_path / "a.safetensors", piece(500)
    write_piece(path, wanted, KEY)
    found = read_piece(path, KEY)
    assert str(path) in Path("/proc/self/maps").read_text()
    write_piece(path, piece(500, seed=1), KEY)
    path.unlink()
    assert torch.equal(found.kv, wanted.kv)


def test_pieces_in_memory_need_no_file(tmp_path: Path) -> None:
    """Reading a mapping of a file that was cut short would end the process."""
    store = Store.create(tmp_path / "kv", MANIFEST)
    name, wanted = piece_name([1]), piece(3000)
    store.write(name, wanted)
    tiers = Tiers(store, memory=10**8, gpu_memory=0, device=torch.device("cpu"))
    tiers.get(name)
    os.truncate(store.path(name), 0)
    assert torch.equal(tiers.get(name).kv, wanted.kv)


def test_a_worker_has_its_own_heads(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    wanted = packed(piece(40).kv, "int8")
    store.write(piece_name([1]), wanted)
    for rank in (0, 1):
        heads = slice(rank, rank + 1)
        for memory in (0, 10**6):
            tiers = Tiers(store, memory=memory, gpu_memory=0, device=torch.device("cpu"), heads=heads)
            found = tiers.get(piece_name([1]))
            assert torch.equal(found.kv, wanted.kv[..., heads, :])
            assert torch.equal(found.scales, wanted.scales[..., heads])


def test_a_damaged_piece_is_set_aside(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "kv", MANIFEST)
    name = piece_name([1, 2])
    store.write(name, piece())
    os.truncate(store.path(name), 40)
    with pytest.raises(DataError, match="kv build"):
        store.read(name)
    store.set_aside(name)
    assert not store.has(name)
    assert list(store.names()) == []
