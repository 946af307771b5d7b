"""Encoders: turn texts into float32 vectors, with an embedding cache on disk."""

from ragalign.encoders.base import Encoder, TextKind
from ragalign.encoders.locate import DEFAULT_ENCODER
from ragalign.encoders.sentence_transformer import Precision

__all__ = ["DEFAULT_ENCODER", "Encoder", "Precision", "TextKind"]
