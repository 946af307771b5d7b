"""Token ids of demonstrations on disk: a cache that nothing depends on."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from fixtures.tokenizers import Case

from ragalign.packing import Packer, Packing
from ragalign.packing import pieces as pieces_module
from ragalign.packing.pieces import Ids, Pieces, TokenStore
from ragalign.pool import Pool
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, Hit, Prompt, Turn

POOL = Pool.from_demonstrations(
    Demonstration(f"Question {n}: why?", f"Because of {n}.\n```\ncode {n}\n```") for n in range(60)
)
ASKED = [[Turn("user", f"And {n}?")] for n in range(5)]
HITS = [[Hit(POOL.ids[(7 * n + k) % 60], 0.5, k) for k in range(12)] for n in range(5)]


class Counting:
    """Passes everything on to a tokenizer and counts the texts that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.texts: list[str] = []

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.texts += texts
        return self._tokenizer.encode_batch(texts)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


@pytest.fixture(scope="session")
def tokenizer(load_case: Callable[[str], Case]) -> Tokenizer:
    return load_case("llama_3_like").tokenizer


def pack_all(tokenizer: Tokenizer, cache: Path | None, form: str = "urial") -> list[Prompt]:
    packer = Packer(Template.load(form), tokenizer, POOL, packing=Packing(max_tokens=900), cache=cache)
    return [prompt for prompt in packer.pack_many(ASKED, HITS) if isinstance(prompt, Prompt)]


def same(left: list[Prompt], right: list[Prompt]) -> bool:
    return left == right and all(a.token_ids == b.token_ids for a, b in zip(left, right, strict=True))


def store_file(cache: Path) -> Path:
    [path] = cache.glob("*.sqlite")
    return path


def test_a_second_packer_tokenises_no_demonstration(tokenizer: Tokenizer, tmp_path: Path) -> None:
    first, second = Counting(tokenizer), Counting(tokenizer)
    made = pack_all(first, tmp_path / "cache")  # type: ignore[arg-type]
    read = pack_all(second, tmp_path / "cache")  # type: ignore[arg-type]
    assert same(made, read)
    assert same(made, pack_all(tokenizer, None))
    assert any("Because of 7." in text for text in first.texts)
    assert not any("Because of" in text for text in second.texts)


def test_templates_and_tokenizers_have_their_own_files(
    tokenizer: Tokenizer, load_case: Callable[[str], Case], tmp_path: Path
) -> None:
    for form in ("urial", "ica"):
        for one in (tokenizer, load_case("gpt_2_like").tokenizer):
            assert same(pack_all(one, tmp_path, form), pack_all(one, None, form))
    assert len(list(tmp_path.glob("*.sqlite"))) == 4


def test_other_texts_under_known_ids_are_tokenised(tokenizer: Tokenizer, tmp_path: Path) -> None:
    # Were rendering to change between two versions, ids of the old texts must not be used.
    store = TokenStore(tmp_path / "tokens.sqlite")

    def encode(texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        return [(np.array(ids, np.int32), np.array(ids, np.int32)) for ids in tokenizer.encode_batch(texts)]

    id_ = POOL.ids[0]
    for render in (lambda one: one.instruction, lambda one: one.response):
        piece = Pieces(render, encode, store).load([id_], POOL.get)[id_]
        assert piece.ids.tolist() == tokenizer.encode(render(POOL.get(id_)))


def test_any_flipped_byte_is_survived(tokenizer: Tokenizer, tmp_path: Path) -> None:
    right = pack_all(tokenizer, tmp_path)
    path = store_file(tmp_path)
    content = path.read_bytes()
    chosen = random.Random(0)
    for _ in range(150):
        at = chosen.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << chosen.randrange(8))]) + content[at + 1 :])
        assert same(pack_all(tokenizer, tmp_path), right)


@pytest.mark.parametrize("field", ["value", "checksum", "key", "id"])
def test_rows_with_other_values_are_not_used(tokenizer: Tokenizer, tmp_path: Path, field: str) -> None:
    right = pack_all(tokenizer, tmp_path)
    change = {"value": "substr(value, 5)", "checksum": "checksum + 1", "key": "randomblob(16)", "id": "id + 1"}[field]
    connection = sqlite3.connect(store_file(tmp_path))
    with connection:
        connection.execute(f"UPDATE ragalign_cache SET {field} = {change}")
        connection.execute("UPDATE ragalign_cache SET value = 'many' WHERE rowid % 3 = 0")
        connection.execute("UPDATE ragalign_cache SET value = NULL WHERE rowid % 3 = 1")
    connection.close()
    assert same(pack_all(tokenizer, tmp_path), right)


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 5000, -1])
def test_cut_off_files_are_survived_and_mended(tokenizer: Tokenizer, tmp_path: Path, size: int) -> None:
    right = pack_all(tokenizer, tmp_path)
    path = store_file(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert same(pack_all(tokenizer, tmp_path), right)
    again = Counting(tokenizer)
    assert same(pack_all(again, tmp_path), right)  # type: ignore[arg-type]
    assert not any("Because of" in text for text in again.texts)


@pytest.mark.parametrize("content", [b"not a database", b"\0" * 8192, b"SQLite format 3\0" + b"x" * 8000])
def test_files_that_are_something_else_are_replaced(tokenizer: Tokenizer, tmp_path: Path, content: bytes) -> None:
    right = pack_all(tokenizer, tmp_path)
    store_file(tmp_path).write_bytes(content)
    assert same(pack_all(tokenizer, tmp_path), right)
    assert TokenStore(store_file(tmp_path)).get([]) == {}
    again = Counting(tokenizer)
    pack_all(again, tmp_path)  # type: ignore[arg-type]
    assert not any("Because of" in text for text in again.texts)


def test_another_table_is_replaced(tokenizer: Tokenizer, tmp_path: Path) -> None:
    right = pack_all(tokenizer, tmp_path)
    path = store_file(tmp_path)
    path.unlink()
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("CREATE TABLE ragalign_cache (id TEXT, other TEXT)")
    connection.close()
    assert same(pack_all(tokenizer, tmp_path), right)
    again = Counting(tokenizer)
    pack_all(again, tmp_path)  # type: ignore[arg-type]
    assert not any("Because of" in text for text in again.texts)


def test_folders_that_cannot_be_written_are_no_obstacle(tokenizer: Tokenizer, tmp_path: Path) -> None:
    right = pack_all(tokenizer, None)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    assert same(pack_all(tokenizer, blocked / "cache"), right)  # no folder can be made there
    taken = tmp_path / "taken"
    name = f"{Packer(Template.load('urial'), tokenizer, POOL).template.fingerprint}-{tokenizer.fingerprint}.sqlite"
    (taken / name).mkdir(parents=True)
    assert same(pack_all(tokenizer, taken), right)  # a folder is where the file would be


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_read_only_folders_are_no_obstacle(tokenizer: Tokenizer, tmp_path: Path) -> None:
    right = pack_all(tokenizer, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    for name in ("full", "empty"):
        (tmp_path / name).chmod(0o500)
        try:
            assert same(pack_all(tokenizer, tmp_path / name), right)
        finally:
            (tmp_path / name).chmod(0o700)


def test_threads_share_a_packer(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A small memory makes threads replace the pieces that others know.
    monkeypatch.setattr(pieces_module, "_MAX_IN_MEMORY", 20)
    right = pack_all(tokenizer, None)
    packer = Packer(Template.load("urial"), tokenizer, POOL, packing=Packing(max_tokens=900), cache=tmp_path / "cache")
    wrong: list[object] = []

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        try:
            for _ in range(60):
                n = chosen.randrange(len(ASKED))
                prompt = packer.pack(ASKED[n], HITS[n])
                if prompt != right[n] or prompt.token_ids != right[n].token_ids:
                    wrong.append(prompt)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_stores_share_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokens.sqlite"
    texts = [f"text {n}" for n in range(400)]
    ids = {text: (np.array([n, n], np.int32), np.array([n], np.int32)) for n, text in enumerate(texts)}
    stores = [TokenStore(path) for _ in range(4)]

    def work(number: int) -> None:
        for start in range(number * 100, number * 100 + 100, 10):
            stores[number].put({text: ids[text] for text in texts[start : start + 10]})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = TokenStore(path).get(texts)
    assert len(found) >= 390  # a store that waits too long for the others gives up; it is a cache
    assert all(np.array_equal(found[text][0], ids[text][0]) for text in found)
    assert all(np.array_equal(found[text][1], ids[text][1]) for text in found)
