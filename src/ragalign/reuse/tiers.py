"""Storage tiers for pieces: GPU memory, host memory and disk, evicting the least recently used."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from typing import Any

from ragalign.reuse.page_locked import page_locked
from ragalign.reuse.pieces import Piece
from ragalign.reuse.staging import Staging
from ragalign.reuse.store import Store

_log = logging.getLogger(__name__)


class Tier:
    """Pieces within a budget of bytes; the least recently used are evicted first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._pieces: OrderedDict[str, Piece] = OrderedDict()
        self.n_bytes = 0
        self.n_evicted = 0

    def get(self, name: str) -> Piece | None:
        """The piece, now the most recently used one; None if it is not here."""
        piece = self._pieces.get(name)
        if piece is not None:
            self._pieces.move_to_end(name)
        return piece

    def put(self, name: str, piece: Piece) -> None:
        """Keep a piece, unless it alone is larger than the budget."""
        if piece.n_bytes > self.budget or name in self._pieces:
            return
        self.make_room(piece.n_bytes)
        self._pieces[name] = piece
        self.n_bytes += piece.n_bytes

    def make_room(self, n_bytes: int) -> None:
        """Evict pieces until as many bytes are left, or none is here."""
        while self._pieces and self.n_bytes + n_bytes > self.budget:
            _, old = self._pieces.popitem(last=False)
            self.n_bytes -= old.n_bytes
            self.n_evicted += 1

    def has_room_for(self, piece: Piece) -> bool:
        """Whether the piece fits, if others are evicted."""
        return piece.n_bytes <= self.budget

    def clear(self) -> None:
        """Forget all pieces."""
        self._pieces.clear()
        self.n_bytes = 0


class Tiers:
    """Fetches pieces from any tier to the device that needs them.

    Args:
        store: where all of them are.
        memory, gpu_memory: bytes of host and of GPU memory for those used most recently.
        device: a torch device. On a CPU there is no second tier, and `gpu_memory` is not used.
        heads: which key-value heads this process has, as a slice; None for all.
    """

    def __init__(self, store: Store, *, memory: int, gpu_memory: int, device: Any, heads: slice | None = None) -> None:
        self._store = store
        self._device = device
        self._on_gpu = device.type != "cpu"
        self._staging = Staging(device) if self._on_gpu else None
        self._heads = heads
        self._staged = ""
        self._gpu = Tier(gpu_memory if self._on_gpu else 0)
        self._host = Tier(memory)
        self.counts: Counter[str] = Counter()

    def get(self, name: str) -> Piece:
        """The piece, on the device; from host memory it is copied without waiting for the copy. Then call `done`.

        Raises:
            DataError: it is missing or damaged.
        """
        if (piece := self._gpu.get(name)) is not None:
            self.counts["from_gpu"] += 1
            return piece
        if (piece := self._host.get(name)) is not None:
            self.counts["from_memory"] += 1
        else:
            piece = self._share(self._store.read(name))
            self.counts["from_disk"] += 1
            self.counts["bytes_read"] += piece.n_bytes
            # A GPU copies from page-locked memory only without waiting. On a CPU, a piece that is used just this once
            # is not copied out of its file.
            if self._on_gpu or self._host.has_room_for(piece):
                piece = self._owned(piece)
                self._host.put(name, piece)
        if self._staging is not None:
            self.counts["bytes_copied"] += piece.n_bytes
            piece = self._staging.copy(piece)
            self._staged = name
        self.counts["evictions"] = self._gpu.n_evicted + self._host.n_evicted
        return piece

    def done(self, name: str, piece: Piece) -> None:
        """Release what `get` returned, once this stream has used it; it can stay on the GPU."""
        if self._staging is None or self._staged != name:
            return
        self._staged = ""
        if self._gpu.has_room_for(piece):
            self._put_on_gpu(name, piece)
        self._staging.done()

    def _put_on_gpu(self, name: str, piece: Piece) -> None:
        import torch

        self._gpu.make_room(piece.n_bytes)  # before the copy, not after it
        try:
            scales = None if piece.scales is None else piece.scales.clone()
            self._gpu.put(name, Piece(piece.kv.clone(), scales))
        except torch.OutOfMemoryError:  # the engine needs the rest, and pieces are still in host memory
            self._gpu.budget = self._gpu.n_bytes
            _log.warning("the GPU has no memory left for pieces: %.1f GB of them stay there", self._gpu.n_bytes / 1e9)

    def keep(self, name: str, piece: Piece) -> None:
        """Add a new piece, in host memory, as the most recently used."""
        self._host.put(name, self._owned(piece) if self._on_gpu else piece)

    def resize(self, *, memory: int, gpu_memory: int) -> None:
        """Change the budgets; this clears GPU memory."""
        self._gpu.clear()
        self._gpu.budget = gpu_memory if self._on_gpu else 0
        self._host.budget = memory

    @property
    def n_bytes(self) -> int:
        """Bytes of the pieces in host memory."""
        return self._host.n_bytes

    def clear(self) -> None:
        """Clear GPU and host memory; the disk keeps everything."""
        self._gpu.clear()
        self._host.clear()

    def _share(self, piece: Piece) -> Piece:
        """The heads of this process, as views."""
        if self._heads is None:
            return piece
        scales = None if piece.scales is None else piece.scales[..., self._heads]
        return Piece(piece.kv[..., self._heads, :], scales)

    def _owned(self, piece: Piece) -> Piece:
        """A copy in memory of its own, page-locked where there is a GPU."""
        import torch

        def copy(tensor: Any) -> Any:
            allocate = page_locked if self._on_gpu else torch.empty
            return allocate(tensor.shape, dtype=tensor.dtype).copy_(tensor)

        return Piece(copy(piece.kv), None if piece.scales is None else copy(piece.scales))
