"""Copying the keys and values of new pieces while the engine computes them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Capture:
    """Tokens [first, end) are computed in this step, of the piece `name` at positions [start, stop) of a request."""

    request: str
    name: str
    start: int
    stop: int
    first: int
    end: int
    blocks: tuple[int, ...]


@dataclass
class _Unfinished:
    """A piece that is being computed: [2, layers, tokens, heads, features], complete up to position `end`."""

    kv: Any
    end: int


class Recorder:
    """Records pieces, each of which can be computed in several steps.

    In each step, `record` takes the wanted tokens of all pieces together out of a layer's keys and values, and copies
    them into a buffer in host memory that is allocated once (page-locked where there is a GPU). Nothing waits for these
    copies before `finish`.

    Args:
        n_layers: layers of the model.
        block_size: tokens per block of the engine's cache.
        device: of the keys and values.
    """

    def __init__(self, n_layers: int, block_size: int, device: Any) -> None:
        self._n_layers = n_layers
        self._block_size = block_size
        self._device = device
        self._captures: tuple[Capture, ...] = ()
        self._rows: Any = None  # int64 [n], of the step's tokens; None until the first layer
        self._parts: list[tuple[Capture, slice]] = []  # and where in these rows
        self._buffer: Any = None
        self._unfinished: dict[str, _Unfinished] = {}

    @property
    def is_recording(self) -> bool:
        """Whether the current step computes tokens of a piece."""
        return bool(self._captures)

    def expect(self, captures: Sequence[Capture]) -> None:
        """Set the tokens to record in the next step."""
        self._captures, self._rows = tuple(captures), None

    def record(self, layer: int, key: Any, value: Any, slots: Any) -> None:
        """Record a layer's part of the step.

        Args:
            layer: its number.
            key: [tokens, heads, features] of all tokens of the step.
            value: the same.
            slots: int64 [tokens], their places in the engine's cache.
        """
        if self._rows is None:
            self._rows, self._parts = self._find(slots)
            self._make_room(len(self._rows), key)
        n = len(self._rows)
        if n:
            self._buffer[0, layer, :n].copy_(key[self._rows], non_blocking=True)
            self._buffer[1, layer, :n].copy_(value[self._rows], non_blocking=True)

    def finish(self) -> list[tuple[str, Any]]:
        """End the step; returns the name and the keys and values of each piece that is now complete."""
        import torch

        captures, self._captures = self._captures, ()
        if self._rows is None:
            return []
        if self._device.type != "cpu":
            torch.cuda.current_stream(self._device).synchronize()
        for capture, place in self._parts:
            if capture.first == capture.start:  # also of a request that was preempted and begins again
                shape = (2, self._n_layers, capture.stop - capture.start, *self._buffer.shape[3:])
                kv = torch.empty(shape, dtype=self._buffer.dtype)
                self._unfinished[capture.request] = _Unfinished(kv, capture.start)
            piece = self._unfinished.get(capture.request)
            if piece is not None and piece.end == capture.first:
                part = slice(capture.first - capture.start, capture.end - capture.start)
                piece.kv[:, :, part].copy_(self._buffer[:, :, place])
                piece.end = capture.end
        complete = []
        for capture in captures:
            if capture.end == capture.stop and (piece := self._unfinished.pop(capture.request, None)) is not None:
                if piece.end == capture.stop:
                    complete.append((capture.name, piece.kv))
                else:
                    _log.warning("piece %s: some of its tokens were not computed; it is not kept", capture.name)
        return complete

    def forget(self, requests: Collection[str]) -> None:
        """Discard what was recorded of requests that have ended."""
        for request in requests:
            self._unfinished.pop(request, None)

    def _find(self, slots: Any) -> tuple[Any, list[tuple[Capture, slice]]]:
        """The rows of the step's tokens to record, and the part of them that belongs to each capture."""
        import torch

        wanted = [
            slots_of(capture.blocks, capture.first, capture.end, self._block_size, self._device)
            for capture in self._captures
            if capture.first < capture.end
        ]
        if not wanted:
            return torch.empty(0, dtype=torch.int64, device=self._device), []
        order = torch.argsort(slots)
        together = torch.cat(wanted)
        rows = order[torch.searchsorted(slots[order], together).clamp_max(len(slots) - 1)]
        is_found = (slots[rows] == together).cpu()  # the only wait for the device before the step's end
        parts, start = [], 0
        for capture in self._captures:
            place = slice(start, start + capture.end - capture.first)
            start = place.stop
            if place.start < place.stop and bool(is_found[place].all()):
                parts.append((capture, place))
        return rows, parts

    def _make_room(self, n: int, key: Any) -> None:
        import torch

        from ragalign.reuse.page_locked import page_locked

        if self._buffer is None or self._buffer.shape[2] < n:
            self._buffer = None  # freed before its successor is allocated
            allocate = torch.empty if self._device.type == "cpu" else page_locked
            self._buffer = allocate((2, self._n_layers, n, *key.shape[1:]), dtype=key.dtype)


def slots_of(blocks: Sequence[int], first: int, end: int, block_size: int, device: Any) -> Any:
    """Places in the engine's cache of the tokens [first, end) of a request with these blocks; int64 [end - first]."""
    import torch

    positions = torch.arange(first, end, device=device)
    places = torch.tensor(blocks, dtype=torch.int64, device=device)
    return places[positions // block_size] * block_size + positions % block_size
