"""The default search parameters on real vectors, which cluster less than made ones do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.indexes.faiss_backend import FaissIndex
from ragalign.indexes.kinds import choose
from ragalign.pool.queries import read_queries


@pytest.mark.parametrize(("kind", "floor"), [("hnsw", 0.98), ("ivf", 0.95), ("IVF128,Flat", 0.95)])
def test_the_defaults_find_nearly_all(
    lima_index: Path, minilm: Encoder, shared_data: Path, kind: str, floor: float
) -> None:
    vectors = np.asarray(Index.open(lima_index).vectors)
    queries = minilm.encode([query.text for query in read_queries(shared_data / "ica" / "queries.jsonl")[:100]])
    chosen = choose(kind, len(vectors))
    _, found = FaissIndex.build(vectors, chosen.factory, chosen.search, inner_product=True).search(queries, 10)
    best = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    recall = np.mean([len({*row} & {*true}) / 10 for row, true in zip(found.tolist(), best.tolist(), strict=True)])
    assert recall >= floor
