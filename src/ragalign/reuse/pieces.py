"""One demonstration's keys and values as a file: safetensors, hashed, written atomically."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragalign.errors import DataError
from ragalign.runs import replacing


class DamagedPieceError(DataError):
    """A piece is not what was written."""


class ForeignPieceError(DataError):
    """A piece was computed with other settings than those of its store."""


def piece_name(ids: Sequence[int] | np.ndarray[Any, Any]) -> str:
    """The name of the piece with these token ids: a hash of the ids, so no other text can be mistaken for it."""
    return hashlib.sha256(np.ascontiguousarray(ids, dtype=np.int32).tobytes()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class Piece:
    """Keys and values of consecutive tokens, as they are stored.

    Attributes:
        kv: tensor [2, layers, tokens, key-value heads, features]: keys, then values. Keys are turned as at the
            positions directly after the prefix.
        scales: float32 [2, layers, blocks of tokens, heads] where `kv` holds 8-bit numbers; None otherwise.
    """

    kv: Any
    scales: Any = None

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return int(self.kv.shape[2])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `kv`."""
        return tuple(self.kv.shape)

    @property
    def n_bytes(self) -> int:
        """The size in memory, in bytes."""
        tensors = (self.kv,) if self.scales is None else (self.kv, self.scales)
        return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)

    def layers(self, first: int, stop: int) -> Piece:
        """The layers [first, stop) of the piece, as views."""
        part = slice(first, stop)
        return Piece(self.kv[:, part], None if self.scales is None else self.scales[:, part])


def write_piece(path: Path, piece: Piece, key: str) -> None:
    """Write a piece atomically: if the program is killed, the file is complete or unchanged.

    Args:
        path: the file.
        piece: what to write.
        key: the store's, which the file repeats: the folder can be built again with other settings at any time.
    """
    from safetensors.torch import save

    tensors = {"kv": piece.kv.contiguous()}
    if piece.scales is not None:
        tensors["scales"] = piece.scales.contiguous()
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, {"xxh3": _digest(tensors, key), "key": key}))


def read_piece(path: Path, key: str) -> Piece:
    """Map a piece into memory, after comparing it with its hash, and its store's key with ``key``.

    Its tensors are views of the file. Replacing or removing the file leaves them intact; cutting it short in place does
    not, so copy what is to be used later.

    Raises:
        DamagedPieceError: the file is cut short, of another format, or not what was written.
        ForeignPieceError: it was computed with other settings.
        DataError: it is missing or cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    damaged = f"{path}: damaged; `ragalign kv build` computes it again"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("xxh3") != _digest(tensors, metadata["key"]) or tensors["kv"].dim() != 5:
            raise DamagedPieceError(damaged)
        if tensors["kv"].dtype in (torch.int8, torch.float8_e4m3fn) and "scales" not in tensors:
            raise DamagedPieceError(damaged)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
        raise DamagedPieceError(damaged) from None
    if metadata["key"] != key:
        raise ForeignPieceError(
            f"{path}: computed with other settings than its store's; `ragalign kv build` computes it again"
        )
    return Piece(tensors["kv"], tensors.get("scales"))


def is_usable(path: Path, key: str) -> bool:
    """Whether a file is of this key and has the size that its header promises, without reading all of it.

    True for a file that cannot be read, since that does not make it torn.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return bool((file.metadata() or {}).get("key") == key)
    except OSError:
        return True
    except (SafetensorError, ValueError):
        return False


def _digest(tensors: Mapping[str, Any], key: str) -> str:
    import torch
    import xxhash

    digest = xxhash.xxh3_128(key.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(memoryview(tensor.view(torch.uint8).reshape(-1).numpy()))
    return digest.hexdigest()
