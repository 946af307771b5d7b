"""One demonstration's keys and values as a file: safetensors, hashed, written atomically."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragalign._parsing import parse_json
from ragalign.errors import DataError

# safetensors' names of the dtypes that occur here.
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "F8_E4M3": "float8_e4m3fn"}


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
    def n_bytes(self) -> int:
        """The size in memory, in bytes."""
        tensors = (self.kv,) if self.scales is None else (self.kv, self.scales)
        return sum(int(tensor.numel() * tensor.element_size()) for tensor in tensors)


def write_piece(path: Path, piece: Piece) -> None:
    """Write a piece atomically: if the program is killed, the file is complete or unchanged."""
    from safetensors.torch import save

    tensors = {"kv": piece.kv.contiguous()}
    if piece.scales is not None:
        tensors["scales"] = piece.scales.contiguous()
    content = save(tensors, {"xxh3": _digest(tensors)})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_piece(path: Path, *, pin: bool = False) -> Piece:
    """Read a piece and compare it with its hash.

    It is read and not memory-mapped: a file that is cut short under a mapping kills the process that looks at it.

    Args:
        path: the file.
        pin: into page-locked memory, from which a GPU copies at full speed.

    Raises:
        DataError: the file is missing, cut short, of another format, or not what was written.
    """
    import torch

    from ragalign.reuse.page_locked import page_locked

    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            n_header = int.from_bytes(file.read(8), "little")
            if n_header > min(size, 1 << 20):
                raise DataError(f"{path}: damaged; `ragalign kv build` computes it again")
            header = parse_json(file.read(n_header))
            digest = header.pop("__metadata__")["xxh3"]
            tensors = {}
            for name in sorted(header):
                start, end = header[name]["data_offsets"]
                dtype = getattr(torch, _DTYPES[header[name]["dtype"]])
                shape = header[name]["shape"]
                tensor = page_locked(shape, dtype) if pin else torch.empty(shape, dtype=dtype)
                view = memoryview(tensor.view(torch.uint8).reshape(-1).numpy())
                if end - start != len(view) or 8 + n_header + end > size:
                    raise DataError(f"{path}: damaged; `ragalign kv build` computes it again")
                file.seek(8 + n_header + start)
                n_read = 0
                while n_read < len(view):
                    if not (more := file.readinto(view[n_read:])):
                        raise DataError(f"{path}: cut short while it was read")
                    n_read += more
                tensors[name] = tensor
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        raise DataError(f"{path}: damaged; `ragalign kv build` computes it again") from None
    if "kv" not in tensors or _digest(tensors) != digest:
        raise DataError(f"{path}: damaged; `ragalign kv build` computes it again")
    return Piece(tensors["kv"], tensors.get("scales"))


def _digest(tensors: Mapping[str, Any]) -> str:
    import torch
    import xxhash

    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(memoryview(tensor.view(torch.uint8).reshape(-1).numpy()))
    return digest.hexdigest()
