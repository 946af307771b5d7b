"""Two ways to write pieces into the engine's cache, with their keys turned to the new positions.

On a GPU, launching operations is the bottleneck: all layers of a piece are turned at once, and all pieces of a layer
are written at once. On a CPU, memory traffic is: a few layers of a piece are read, turned and written while they are in
the processor's cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ragalign.reuse.eight_bit import unpacked
from ragalign.reuse.pieces import Piece

# Bytes of keys that are turned at once on a CPU. Larger ones leave its cache; for a few heads, smaller ones take longer
# to launch than to turn.
_AT_ONCE = 1 << 20

Turn = Callable[[Any], Any]
"""Turns keys [..., tokens, heads, features] in place and returns them."""


class Writer(ABC):
    """Writes consecutive tokens of one request.

    Args:
        layers: the engine's attention layers.
        updates: what writes into each layer's cache.
        dtype: of the engine's cache.
        slots: places of the tokens in the cache, int64.
    """

    def __init__(self, layers: Sequence[Any], updates: Sequence[Callable[..., Any]], dtype: Any, slots: Any) -> None:
        self._layers = layers
        self._updates = updates
        self._dtype = dtype
        self._slots = slots
        self.n_tokens = 0
        self.n_bytes = 0

    @abstractmethod
    def add(self, piece: Piece, tokens: slice, turns: Sequence[tuple[Turn | None, Sequence[int]]]) -> None:
        """Write these tokens of a piece after those written before.

        Args:
            piece: the piece, which can be reused once this has returned (on a GPU: in the order of its stream).
            tokens: which of its tokens.
            turns: what turns the keys, and in which layers; None leaves them as they are.
        """

    @abstractmethod
    def finish(self) -> None:
        """Write what has been added, if it has not been written."""

    def _write(self, number: int, keys: Any, values: Any, slots: Any) -> None:
        layer = self._layers[number]
        self._updates[number](layer, keys, values, layer.kv_cache, slots)
        self.n_bytes += 2 * keys.numel() * keys.element_size()


class FewLayers(Writer):
    """Writes a few layers of each piece at a time, for CPUs."""

    def add(self, piece: Piece, tokens: slice, turns: Sequence[tuple[Turn | None, Sequence[int]]]) -> None:
        """See `Writer.add`."""
        n = tokens.stop - tokens.start
        slots = self._slots[self.n_tokens : self.n_tokens + n]
        most = max(1, _AT_ONCE // max(1, piece.kv[0, 0, tokens].numel() * self._dtype.itemsize))
        for turn, numbers in turns:
            for first, stop in _runs(numbers, most):
                keys, values = unpacked(piece.layers(first, stop), self._dtype)[:, :, tokens]
                if turn is not None:
                    keys = turn(keys.clone())
                for number in range(first, stop):
                    self._write(number, keys[number - first], values[number - first], slots)
        self.n_tokens += n

    def finish(self) -> None:
        """Nothing: `add` wrote everything."""


def _runs(numbers: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Consecutive numbers as ranges [first, stop) of at most `most`."""
    first = stop = numbers[0] if numbers else 0
    for number in numbers:
        if number != stop or stop - first == most:
            yield first, stop
            first = number
        stop = number + 1
    if first != stop:
        yield first, stop


class AllAtOnce(Writer):
    """Collects the pieces and writes each layer once, for GPUs."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._parts: list[Any] = []

    def add(self, piece: Piece, tokens: slice, turns: Sequence[tuple[Turn | None, Sequence[int]]]) -> None:
        """See `Writer.add`."""
        kv = unpacked(piece, self._dtype)[:, :, tokens].clone()
        for turn, numbers in turns:
            if turn is None:
                continue
            if len(numbers) == len(self._layers):
                turn(kv[0])
            else:
                for number in numbers:
                    turn(kv[0, number])
        self._parts.append(kv)
        self.n_tokens += tokens.stop - tokens.start

    def finish(self) -> None:
        """See `Writer.finish`."""
        import torch

        if not self._parts:
            return
        kv = self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts, dim=2)
        for number in range(len(self._layers)):
            self._write(number, kv[0, number], kv[1, number], self._slots[: self.n_tokens])
