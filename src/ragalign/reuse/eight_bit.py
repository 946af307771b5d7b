"""Pieces at half the size: int8 or FP8 numbers, with a scale for each head and block of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

from ragalign.reuse.pieces import Piece

Precision = Literal["model", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# Tokens that share a scale. Few, since one large key would cost all others in its block their low bits.
BLOCK = 16
# The largest number of each kind; FP8 is E4M3 (Micikevicius et al. 2022, arXiv 2209.05433).
_LARGEST: Mapping[str, float] = MappingProxyType({"int8": 127.0, "fp8": 448.0})


def packed(kv: Any, precision: Precision) -> Piece:
    """A piece of ``kv`` [2, layers, tokens, heads, features] in this precision; "model" keeps it as it is."""
    import torch

    if precision == "model":
        return Piece(kv)
    blocks = _by_block(kv.float())
    scales = blocks.abs().amax(dim=(3, 5)).clamp_min(1e-12) / _LARGEST[precision]
    scaled = blocks / scales[:, :, :, None, :, None]
    small = scaled.round().to(torch.int8) if precision == "int8" else scaled.to(torch.float8_e4m3fn)
    return Piece(small.flatten(2, 3)[:, :, : kv.shape[2]].contiguous(), scales)


def unpacked(piece: Piece, dtype: Any) -> Any:
    """Keys and values of a piece as numbers of this dtype, [2, layers, tokens, heads, features]."""
    if piece.scales is None:
        return piece.kv.to(dtype)
    scales = piece.scales.repeat_interleave(BLOCK, dim=2)[:, :, : piece.n_tokens, :, None]
    return (piece.kv.float() * scales).to(dtype)


def _by_block(kv: Any) -> Any:
    """[2, layers, blocks, BLOCK, heads, features]; the last block is filled up with zeros."""
    import torch

    missing = -kv.shape[2] % BLOCK
    return torch.nn.functional.pad(kv, (0, 0, 0, 0, 0, missing)).unflatten(2, (-1, BLOCK))
