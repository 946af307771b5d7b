"""Encoders: texts to float32 vectors, with an embedding cache on disk."""

from ragalign.encoders.base import DEFAULT_ENCODER, Encoder, Precision, TextKind

__all__ = ["DEFAULT_ENCODER", "Encoder", "Precision", "TextKind"]
