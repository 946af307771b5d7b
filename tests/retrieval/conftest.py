"""Indexes for the retrieval tests: small ones with chosen vectors, and LIMA with real MiniLM vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ragalign.encoders import Encoder, TextKind
from ragalign.indexes import Index, Metric, TextForm
from ragalign.pool import Pool
from ragalign.types import Demonstration


class ChosenEncoder(Encoder):
    """Gives the vectors that a test chose, and random ones of the text's own to all other texts."""

    id = "chosen"
    revision = "1"
    normalize = False
    query_prompt = ""
    document_prompt = ""
    dimension = 0

    def __init__(self, dimension: int, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        self.dimension = dimension
        self._vectors = vectors
        self.n_encoded = 0

    def encode(
        self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False
    ) -> NDArray[np.float32]:
        self.n_encoded += len(texts)
        return np.array([self._one(text) for text in texts], dtype=np.float32).reshape(len(texts), self.dimension)

    def _one(self, text: str) -> NDArray[np.float32]:
        if text in self._vectors:
            return self._vectors[text]
        seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])
        return np.random.default_rng(seed).normal(size=self.dimension).astype(np.float32)


class IndexMaker:
    """Builds a flat index in memory from instructions."""

    def __call__(
        self,
        instructions: Sequence[str],
        *,
        metric: Metric = "cosine",
        dimension: int = 4,
        vectors: Mapping[str, Any] | None = None,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        sources: Sequence[str] | None = None,
        text: TextForm = "instruction",
    ) -> Index:
        n = len(instructions)
        pool = Pool.from_demonstrations(
            Demonstration(instruction, f"answer {row}", source=source, metadata=fields)
            for row, (instruction, source, fields) in enumerate(
                zip(instructions, sources or [""] * n, metadata or [{}] * n, strict=True)
            )
        )
        chosen = {key: np.asarray(vector, dtype=np.float32) for key, vector in (vectors or {}).items()}
        return Index.build(pool, ChosenEncoder(dimension, chosen), kind="flat", metric=metric, text=text)


@pytest.fixture(scope="session")
def make_index() -> IndexMaker:
    return IndexMaker()


@pytest.fixture(scope="session")
def lima(lima_index: Path, minilm: Encoder) -> Index:
    """LIMA with real MiniLM vectors."""
    return Index.open(lima_index, encoder=minilm)
