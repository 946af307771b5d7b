"""Pieces that prompts lacked are computed while nobody waits, one at a time and each once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch

from ragalign.generation.asynchronous import UnavailableError
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import Recipe, data_folder
from ragalign.reuse.layout import ReusingPacker, manifest_for
from ragalign.reuse.pieces import Piece, piece_name
from ragalign.reuse.store import Store
from ragalign.serving.admission import Admission
from ragalign.serving.idle_keeping import IdleKeeper
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding, Delta, Hit, Prompt, Turn


class Engine:
    """Keeps what it is asked to keep, as an engine with ragalign's connector does (see tests/reuse)."""

    model, context_length, is_ready = "recorded", 4096, True

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fails = False
        self.asked: list[Prompt] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def stream(
        self, prompt: Prompt, decoding: Decoding, *, sample: int = 0, logprobs: int | None = None, whole: bool = False
    ) -> AsyncIterator[Delta]:
        assert prompt.reuse is not None
        assert prompt.reuse.keep
        await asyncio.sleep(0)
        self.asked.append(prompt)  # and kept before anybody else runs: tests wait for this
        if self.fails:
            raise UnavailableError("not now")
        ids = prompt.ids[prompt.reuse.n_prefix_tokens :] if prompt.reuse.lengths else prompt.ids
        self.store.write(piece_name(ids), Piece(torch.zeros(2, 1, len(ids), 1, 2)))
        yield Delta("", 1, "length")


@pytest.fixture
def packer(tiny_model: Path, tmp_path: Path) -> ReusingPacker:
    template, constants = Recipe.load("reuse").make_template()
    pool = Pool.load(data_folder() / "starter.jsonl")
    packing = Packing(max_demonstrations=12, max_tokens=100_000, max_demonstration_tokens=100_000)
    plain = Packer(template, Tokenizer.load(tiny_model), pool, packing=packing, constants=constants)
    return ReusingPacker(plain, Store.create(tmp_path / "kv", manifest_for(plain)))


def pack(packer: ReusingPacker, first: int, n: int) -> Prompt:
    pool = packer.packer.pool
    return packer.pack([Turn("user", "Why?")], [Hit(pool[first + row].id, -row, row + 1) for row in range(n)])


async def until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.005)


def test_what_a_prompt_lacked_is_kept_once_nobody_is_served(packer: ReusingPacker) -> None:
    async def work() -> None:
        assert isinstance(packer.store, Store)
        engine, admission = Engine(packer.store), Admission(4, 4)
        keeper = IdleKeeper(engine, admission, idle_s=0.01)
        keeper.start()
        async with admission.place():
            keeper.note(packer, pack(packer, 0, 3))
            await asyncio.sleep(0.1)
            assert engine.asked == []  # somebody is being served
        await until(lambda: len(engine.asked) == 4)
        prompt = pack(packer, 0, 3)
        assert prompt.reuse is not None
        assert len(prompt.reuse.lengths) == 3
        keeper.note(packer, prompt)
        keeper.note(packer, pack(packer, 2, 2))  # of which one is new
        await until(lambda: len(engine.asked) == 5)
        await keeper.close()
        assert len({prompt.token_ids.__repr__() for prompt in engine.asked}) == 5

    asyncio.run(work())


def test_a_piece_that_cannot_be_kept_is_not_tried_again(
    packer: ReusingPacker, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        assert isinstance(packer.store, Store)
        engine = Engine(packer.store)
        engine.fails = True
        keeper = IdleKeeper(engine, Admission(4, 4), idle_s=0.01)
        keeper.start()
        for _ in range(3):
            keeper.note(packer, pack(packer, 0, 2))
            await until(lambda: len(engine.asked) == 3)
            await asyncio.sleep(0.05)
        assert len(engine.asked) == 3
        await keeper.close()

    asyncio.run(work())
    assert caplog.text.count("was not kept: not now") == 3
