"""An index larger than memory at one and ten million vectors: building, opening, recall and latency, with their memory.

    python benchmarks/disk_index.py --pools ../shared/data/pools/lima_1k.jsonl \
        ../shared/data/pools/alpaca_en_demo.json --sizes 1000000 10000000 --out benchmarks/results/disk_index.json

Vectors are made from MiniLM vectors of the pools' sentences (see `made_vectors`), batch by batch, and texts are
numbered. Building, exact search (the truth for recall) and use are processes of their own, each with its own peak of
memory; pages of mapped files count in a peak while they are resident, anonymous memory is given beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, peak_gib, report
from made_vectors import Maker, sentences

from ragalign.encoders import Encoder
from ragalign.indexes import DiskIndex
from ragalign.pool import Pool
from ragalign.types import Demonstration

FACTORY = "IVF4096_HNSW32,PQ48"
BATCH, SHARD, N_QUERIES, K = 50_000, 200_000, 200, 10
PROBES = (16, 64, 256)


def anonymous_gib() -> float:
    """Memory of this process now that is not of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon:")]
    return round(int(line.split()[1]) / 2**20, 2)


def make_real(folder: Path, pools: Sequence[Path]) -> None:
    """Write the real vectors that others are made from."""
    loaded = Pool.load([str(path) for path in pools], on_error="skip")
    texts = [text for demonstration in loaded for text in (demonstration.instruction, demonstration.response)]
    np.save(folder / "real.npy", Encoder.load(precision="auto").encode(sentences(texts)[:6_000]))


def batches(maker: Maker, n: int) -> Iterator[tuple[Pool, np.ndarray]]:
    for start in range(0, n, BATCH):
        size = min(BATCH, n - start)
        rows = (
            Demonstration(f"Question number {start + row}?", f"This is the answer to question number {start + row}.")
            for row in range(size)
        )
        yield Pool.from_demonstrations(rows), maker.make(size)


def build(folder: Path, n: int) -> dict[str, Any]:
    """Make and index n vectors."""
    maker = Maker(np.load(folder / "real.npy"))
    np.save(folder / "queries.npy", maker.make(N_QUERIES))
    started, making = time.perf_counter(), 0.0

    def timed() -> Iterator[tuple[Pool, np.ndarray]]:
        nonlocal making
        source = batches(maker, n)
        while True:
            before = time.perf_counter()
            batch = next(source, None)
            making += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    DiskIndex.build(folder / "index", timed(), factory=FACTORY, shard=SHARD)
    seconds = time.perf_counter() - started
    sizes = {file.name: file.stat().st_size for file in (folder / "index").iterdir()}
    return {
        "making_the_input_s": round(making, 1),
        "build_s": round(seconds - making, 1),
        "peak_gib": peak_gib(),
        "anonymous_gib": anonymous_gib(),
        "bytes_per_vector": {name: round(size / n, 1) for name, size in sizes.items()},
    }


def truth(folder: Path, n: int) -> dict[str, Any]:
    """Write the exact neighbours of the queries."""
    index, queries = DiskIndex.open(folder / "index"), np.load(folder / "queries.npy")
    best = np.full((len(queries), 0), -np.inf), np.full((len(queries), 0), -1)
    for start in range(0, n, SHARD):
        scores = queries @ np.asarray(index.vectors[start : start + SHARD]).T
        places = np.argpartition(-scores, K, axis=1)[:, :K]
        joined = np.concatenate([best[0], np.take_along_axis(scores, places, axis=1)], axis=1)
        rows = np.concatenate([best[1], places + start], axis=1)
        order = np.argsort(-joined, axis=1)[:, :K]
        best = np.take_along_axis(joined, order, axis=1), np.take_along_axis(rows, order, axis=1)
    np.save(folder / "truth.npy", best[1])
    return {}


def use(folder: Path, _n: int) -> dict[str, Any]:
    """Open, search one query at a time, and read the texts of the hits."""
    started = time.perf_counter()
    index = DiskIndex.open(folder / "index")
    open_s = time.perf_counter() - started
    queries, expected = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    settings = {}
    for probes in PROBES:
        seconds, found = [], []
        for query in queries:
            started = time.perf_counter()
            found.append(index.search(query[None], K, probes=probes)[1][0])
            seconds.append(time.perf_counter() - started)
        shared = [len(set(a) & set(b)) / K for a, b in zip(found, expected, strict=True)]
        settings[str(probes)] = {
            "recall_at_10": round(float(np.mean(shared)), 4),
            "median_ms": round(1e3 * float(np.median(seconds)), 2),
            "p99_ms": round(1e3 * float(np.quantile(seconds, 0.99)), 2),
        }
    started = time.perf_counter()
    for place in expected[:, 0]:
        index.pool[int(place)]
    return {
        "open_s": round(open_s, 3),
        "probes": settings,
        "text_ms": round(1e3 * (time.perf_counter() - started) / len(expected), 2),
        "peak_gib": peak_gib(),
        "anonymous_gib": anonymous_gib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--real", type=Path, help="real vectors that an earlier run made, instead of --pools")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", choices=("build", "truth", "use"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = {"build": build, "truth": truth, "use": use}
    if arguments.step:
        print(json.dumps(steps[arguments.step](arguments.folder, arguments.sizes[0])))
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.real:
            shutil.copy(arguments.real, folder / "real.npy")
        else:
            make_real(folder, arguments.pools)
        for n in arguments.sizes:
            found[str(n)] = {"n": n}
            for step in steps:
                command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--sizes", str(n)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[str(n)] |= {step: json.loads(done.stdout.splitlines()[-1])} if step != "truth" else {}
                report({**about("faiss-cpu"), "factory": FACTORY, "sizes": found}, arguments.out)
            shutil.rmtree(folder / "index")


if __name__ == "__main__":
    main()
