"""Building an index against plain `SentenceTransformer.encode` on the same texts: our own part must cost nothing.

    python benchmarks/index_build.py --pool ../shared/data/pools/lima_1k.jsonl --out benchmarks/results/index_build.json

The embedding cache is off. Ours is all of `Index.build` and `Index.save`; theirs is the encoding alone, of the same
model with the same batch size and normalisation. Both take turns in one process.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from machine import report

from ragalign.encoders import DEFAULT_ENCODER, Encoder
from ragalign.encoders.locate import locate
from ragalign.indexes import Index
from ragalign.pool import Pool


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    from sentence_transformers import SentenceTransformer

    pool = Pool.load(options.pool)
    texts = pool.instructions
    encoder = Encoder.load(options.encoder, cache=None)
    plain = SentenceTransformer(str(locate(options.encoder).folder), local_files_only=True)

    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:

        def build() -> None:
            Index.build(pool, encoder).save(Path(folder) / "index")

        def encode() -> None:
            plain.encode(texts, normalize_embeddings=True, show_progress_bar=False)

        # The first call of each pays for warming up.
        encoder.encode(texts[:64])
        plain.encode(texts[:64])
        for number in range(options.rounds):
            turns = [(ours, build), (theirs, encode)]
            for times, work in turns if number % 2 else reversed(turns):
                times.append(seconds(work))
        vectors = Index.open(Path(folder) / "index").vectors
        difference = float(np.abs(vectors - plain.encode(texts, normalize_embeddings=True)).max())

    result = {
        "command": "python " + " ".join(sys.argv),
        "n_demonstrations": len(pool),
        "encoder": options.encoder,
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "torch": version("torch"),
        "sentence_transformers": version("sentence-transformers"),
        "faiss": version("faiss-cpu"),
        "largest_difference": difference,
        "ragalign_median_s": round(statistics.median(ours), 3),
        "sentence_transformers_median_s": round(statistics.median(theirs), 3),
        "median_ratio": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 4),
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(theirs), 4),
        "ratio_of_fastest": round(min(ours) / min(theirs), 4),
        "ragalign_s": [round(time_s, 3) for time_s in ours],
        "sentence_transformers_s": [round(time_s, 3) for time_s in theirs],
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
