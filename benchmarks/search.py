"""Batch search through an index against raw FAISS: what our checks, ordering and padding cost.

    python benchmarks/search.py --out benchmarks/results/search.json

100,000 vectors of 384 dimensions, 1,024 queries at a time, the ten best. Both search FAISS's exact index over the same
vectors in the same process, in turns, so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from machine import report
from numpy.typing import NDArray

from ragalign.encoders import Encoder, TextKind
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.types import Demonstration


class DrawnEncoder(Encoder):
    """Random directions instead of embeddings: exact search takes the same time for any vectors."""

    id = "drawn"
    revision = "1"
    normalize = True
    query_prompt = ""
    document_prompt = ""
    dimension = 0

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension

    def encode(
        self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Unit vectors in random directions."""
        draw = np.random.default_rng(len(texts)).standard_normal((len(texts), self.dimension), dtype=np.float32)
        return draw / np.linalg.norm(draw, axis=1, keepdims=True)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    import faiss

    encoder = DrawnEncoder(options.dimension)
    pool = Pool.from_demonstrations(Demonstration(f"question {i}", "answer") for i in range(options.vectors))
    index = Index.build(pool, encoder)
    raw = faiss.IndexFlatIP(options.dimension)
    raw.add(np.asarray(index.vectors))
    queries = encoder.encode(["query"] * options.batch)

    ours, theirs = [], []
    for number in range(options.rounds):
        turns = [(ours, lambda: index.search(queries, options.k)), (theirs, lambda: raw.search(queries, options.k))]
        for times, work in turns if number % 2 else reversed(turns):
            times.append(seconds(work))
    same = bool((index.search(queries, options.k)[1] == raw.search(queries, options.k)[1]).all())

    result = {
        "command": "python " + " ".join(sys.argv),
        "n_vectors": options.vectors,
        "dimension": options.dimension,
        "batch": options.batch,
        "k": options.k,
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "faiss": version("faiss-cpu"),
        "same_results": same,
        "ragalign_ms_per_query": round(statistics.median(ours) / options.batch * 1e3, 4),
        "faiss_ms_per_query": round(statistics.median(theirs) / options.batch * 1e3, 4),
        "median_ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 4),
        "ratio_of_fastest": round(min(ours) / min(theirs), 4),
        "ragalign_s": [round(time_s, 4) for time_s in ours],
        "faiss_s": [round(time_s, 4) for time_s in theirs],
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
