"""Pools and vectors that the index tests make for themselves, with an encoder that looks vectors up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders import Encoder, TextKind
from ragalign.pool import Pool
from ragalign.types import Demonstration


class TableEncoder(Encoder):
    """Gives row i of its table for the text ``question i``, and counts what it is asked."""

    id = "table"
    normalize = False
    query_prompt = ""
    document_prompt = ""
    dimension = 0

    def __init__(self, table: NDArray[np.float32], revision: str = "1") -> None:
        self._table = table
        self._revision = revision
        self.dimension = table.shape[1]
        self.encoded: list[str] = []

    @property
    def revision(self) -> str:
        return self._revision

    def encode(
        self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False
    ) -> NDArray[np.float32]:
        self.encoded.extend(texts)
        return self._table[[int(text.split()[1]) for text in texts]].reshape(len(texts), self.dimension)


def make_pool(numbers: Iterable[int]) -> Pool:
    """Demonstrations ``question i`` -> ``answer i``."""
    return Pool.from_demonstrations(
        Demonstration(f"question {number}", f"answer {number}", source="made", metadata={"number": number})
        for number in numbers
    )


def clustered(n: int, dimension: int, *, seed: int = 0, n_clusters: int = 40) -> NDArray[np.float32]:
    """Vectors with structure, as texts have it: points around centres, of differing lengths."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(n_clusters, dimension))
    points = centres[generator.integers(n_clusters, size=n)] + 0.6 * generator.normal(size=(n, dimension))
    return (points * generator.uniform(0.8, 1.2, size=(n, 1))).astype(np.float32)
