"""Keeping what was missing: while nobody waits, the engine computes the pieces that prompts lacked."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress

from ragalign.errors import GenerationError
from ragalign.generation.asynchronous import AsyncEngine
from ragalign.reuse.keeping import keeping_prompt
from ragalign.reuse.layout import ReusingPacker
from ragalign.reuse.pieces import piece_name
from ragalign.reuse.store import KeptPieces
from ragalign.serving.admission import Admission
from ragalign.types import Decoding, Prompt

# Pieces that wait to be computed; more are forgotten until a prompt lacks them again.
_MOST_WAITING = 1_000
_ONE_TOKEN = Decoding(max_tokens=1)

log = logging.getLogger("ragalign.serving")


class IdleKeeper:
    """Computes missing pieces one at a time, each in a forward pass of its own.

    Each piece is tried once: a store that cannot be written to costs no more than that.

    Args:
        generator: the engine.
        admission: knows whether requests are running.
        idle_s: seconds without a request before a piece is computed.
    """

    def __init__(self, generator: AsyncEngine, admission: Admission, idle_s: float = 1.0) -> None:
        self._generator = generator
        self._admission = admission
        self._idle_s = idle_s
        self._waiting: dict[str, tuple[KeptPieces, list[int]]] = {}
        self._tried: set[str] = set()
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start working; needs a running event loop."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop working."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def note(self, packer: ReusingPacker, prompt: Prompt) -> None:
        """Remember the pieces that a prompt lacked."""
        for ids in packer.missing_from(prompt):
            name = f"{packer.store.key} {piece_name(ids)}"
            if name not in self._tried and len(self._waiting) < _MOST_WAITING:
                self._waiting.setdefault(name, (packer.store, ids))
        if self._waiting:
            self._some.set()

    async def _work(self) -> None:
        while True:
            await self._some.wait()
            await asyncio.sleep(self._idle_s)
            if self._admission.n_running or self._admission.n_waiting or not self._generator.is_ready:
                continue
            name = next(iter(self._waiting))
            store, ids = self._waiting.pop(name)
            self._tried.add(name)
            if not self._waiting:
                self._some.clear()
            try:
                async with aclosing(
                    self._generator.stream(keeping_prompt(store, ids), _ONE_TOKEN, whole=True)
                ) as parts:
                    async for _ in parts:
                        pass
            except GenerationError as error:
                log.warning("a missing demonstration was not kept: %s", error)
