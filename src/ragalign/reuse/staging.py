"""Room on a GPU through which pieces pass on their way into the engine's cache."""

from __future__ import annotations

from typing import Any

from ragalign.reuse.pieces import Piece


class Staging:
    """Copies pieces from host memory while the device is busy with something else.

    Copies run on a stream of their own, into a few buffers that are used in turn: a copy waits, on the device, until
    what was in its buffer before has been used. Nothing waits on the host.

    Args:
        device: a CUDA device.
        n_buffers: how many copies can be under way.
    """

    def __init__(self, device: Any, n_buffers: int = 4) -> None:
        import torch

        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._buffers: list[Any] = [None] * n_buffers
        self._used: list[Any] = [torch.cuda.Event() for _ in range(n_buffers)]
        self._turn = 0

    def copy(self, piece: Piece) -> Piece:
        """The piece on the device, until `done` has been called as often as there are buffers."""
        import torch

        tensors = [piece.kv] if piece.scales is None else [piece.kv, piece.scales]
        sizes = [-(-tensor.numel() * tensor.element_size() // 256) * 256 for tensor in tensors]
        number = self._turn
        if self._buffers[number] is None or self._buffers[number].numel() < sum(sizes):
            # Streams share no memory that is freed while another one uses it.
            torch.cuda.current_stream(self._device).synchronize()
            self._stream.synchronize()
            self._buffers[number] = torch.empty(sum(sizes), dtype=torch.uint8, device=self._device)
        copies, start = [], 0
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used[number])
            for tensor, size in zip(tensors, sizes, strict=True):
                n_bytes = tensor.numel() * tensor.element_size()
                room = self._buffers[number][start : start + n_bytes].view(tensor.dtype).view(tensor.shape)
                copies.append(room.copy_(tensor, non_blocking=True))
                start += size
            ready = self._stream.record_event()
        torch.cuda.current_stream(self._device).wait_event(ready)
        return Piece(*copies)

    def done(self) -> None:
        """Whatever reads the piece that `copy` gave last is now on the current stream."""
        import torch

        self._used[self._turn].record(torch.cuda.current_stream(self._device))
        self._turn = (self._turn + 1) % len(self._buffers)
