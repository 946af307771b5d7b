"""The encoder in float32 and in bfloat16: texts per second, latency of one query, and the neighbours found.

    python benchmarks/encoders.py --pool ../shared/data/pools/lima_1k.jsonl \
        --queries ../shared/data/ica/queries.jsonl --out benchmarks/results/encoders.json

Both encode the same texts in the same process, in turns, with nothing cached. Recall is that of the ten best
demonstrations by cosine, averaged over the queries, with float32's as the truth.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
from machine import about, report

from ragalign.encoders import Encoder, Precision
from ragalign.pool import Pool
from ragalign.pool.queries import read_queries


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--singles", type=int, default=40, help="queries that are encoded alone")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    documents = [demonstration.instruction for demonstration in Pool.load(options.pool)]
    queries = [query.text for query in read_queries(options.queries)]
    encoders: dict[str, Encoder] = {name: Encoder.load(precision=name, cache=None) for name in get_args(Precision)}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    singles: dict[str, list[float]] = {name: [] for name in encoders}
    for encoder in encoders.values():
        encoder.encode(documents[:64])
    for number in range(options.rounds):
        for name in encoders if number % 2 else reversed(encoders):
            started = time.perf_counter()
            encoders[name].encode(documents)
            seconds[name].append(time.perf_counter() - started)
    for query in queries[: options.singles]:
        for name, encoder in encoders.items():
            started = time.perf_counter()
            encoder.encode([query], kind="query")
            singles[name].append(time.perf_counter() - started)

    best = {name: nearest(encoder, documents, queries) for name, encoder in encoders.items()}
    exact = best["float32"]
    result: dict[str, Any] = about("torch", "sentence-transformers", "transformers") | {
        "auto_is": Encoder.load(precision="auto", cache=None).precision,
        "texts": len(documents),
        "rounds": options.rounds,
        "texts_per_s": {name: round(len(documents) / statistics.median(each), 1) for name, each in seconds.items()},
        # Neighbours in time are compared with each other, since a shared machine drifts.
        "speed_over_float32": {
            name: round(statistics.median(a / b for a, b in zip(seconds["float32"], each, strict=True)), 3)
            for name, each in seconds.items()
        },
        "one_query_ms": {name: round(1000 * statistics.median(each), 2) for name, each in singles.items()},
        "recall_at_10": {
            name: round(float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, found, strict=True)])), 4)
            for name, found in best.items()
        },
    }
    report(result, options.out)


def nearest(encoder: Encoder, documents: list[str], queries: list[str]) -> list[list[int]]:
    cosines = encoder.encode(queries, kind="query") @ encoder.encode(documents).T
    best: list[list[int]] = np.argsort(-cosines, axis=1)[:, :10].tolist()
    return best


if __name__ == "__main__":
    main()
