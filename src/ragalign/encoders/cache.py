"""The embedding cache: one file per encoder fingerprint, vectors by content hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ragalign.cache import Cache


def default_cache_folder() -> Path:
    """``$RAGALIGN_CACHE/embeddings``, else ``ragalign/embeddings`` in the user's cache folder."""
    if own := os.environ.get("RAGALIGN_CACHE"):
        return Path(own) / "embeddings"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ragalign" / "embeddings"


class EmbeddingCache:
    """Vectors of one encoder on disk; see `ragalign.cache` for how damaged files are handled."""

    def __init__(self, path: Path, dimension: int) -> None:
        self._cache = Cache(path, "embedding cache")
        self._n_bytes = 4 * dimension

    def read(self, prompt: str, texts: Sequence[str], vectors: NDArray[np.float32]) -> list[int]:
        """Fill the rows of ``vectors`` ``[n, d]`` that are cached; returns the positions that are not."""
        keys = [_key(prompt, text) for text in texts]
        found = self._cache.get(keys)
        missing = []
        for position, key in enumerate(keys):
            blob = found.get(key)
            if blob is not None and len(blob) == self._n_bytes:
                vectors[position] = np.frombuffer(blob, dtype="<f4")
            else:
                missing.append(position)
        return missing

    def write(self, prompt: str, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
        """Add the ``vectors`` ``[n, d]`` of ``texts``, all or none."""
        rows = vectors.astype("<f4", copy=False)
        self._cache.put({_key(prompt, text): row.tobytes() for text, row in zip(texts, rows, strict=True)})


def _key(prompt: str, text: str) -> bytes:
    """Hash of prompt and text. It includes the prompt's length, since pooling can leave the prompt out."""
    return hashlib.sha256(f"{len(prompt)}:{prompt}{text}".encode("utf-8", "surrogatepass")).digest()
