"""One million demonstrations: build the index that ``auto`` chooses, search it, and plan over it, within 8 GB.

    python benchmarks/million.py --pools ../shared/data/pools/lima_1k.jsonl ../shared/data/pools/alpaca_en_demo.json \
        ../shared/data/pools/refined_alpaca_1k_longest.json --out benchmarks/results/million.json

The vectors are made from MiniLM vectors of the pools' sentences, so that they agree with them in how far neighbours
are and in intrinsic dimension (see `made_vectors`). The texts are answers of the pools, numbered. Building and using
the index are two processes, each with its own peak of memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, peak_gib, report
from made_vectors import MadeEncoder, Maker, Vectors, sentences, structure

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.generation import build_toy_model
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.types import Demonstration, Prompt, Query, Turn

K = 10


def make(folder: Path, pools: Sequence[Path], n: int, n_queries: int) -> dict[str, Any]:
    """Write vectors.npy: n rows to index, then the queries'."""
    loaded = Pool.load([str(path) for path in pools], on_error="skip")
    texts = [text for demonstration in loaded for text in (demonstration.instruction, demonstration.response)]
    real = Encoder.load(precision="auto").encode(sentences(texts)[:12_000])
    maker = Maker(real)
    made = maker.make(n + n_queries)
    np.save(folder / "vectors.npy", made)
    answers = [demonstration.response for demonstration in loaded if len(demonstration.response) < 2000]
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    sample = made[np.random.default_rng(1).choice(len(made), len(real), replace=False)]
    return {
        "real_vectors": len(real),
        "real": maker.real,
        "made_as_many": structure(sample),
        "span": maker.span,
        "step": round(maker.step, 3),
    }


def build(folder: Path, n: int) -> dict[str, Any]:
    """Build and save the index."""
    encoder = MadeEncoder(np.load(folder / "vectors.npy", mmap_mode="r"))
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    pool = Pool.from_demonstrations(
        Demonstration(f"question {i}", f"{answers[i % len(answers)]} ({i})") for i in range(n)
    )
    started = time.perf_counter()
    index = Index.build(pool, encoder)
    built = time.perf_counter()
    index.save(folder / "index")
    return {
        "kind": index.manifest.factory,
        "search": dict(index.manifest.search),
        "build_s": round(built - started, 1),
        "save_s": round(time.perf_counter() - built, 1),
        "on_disk_gib": round(sum(path.stat().st_size for path in (folder / "index").iterdir()) / 2**30, 2),
        "peak_gib": peak_gib(),
    }


def use(folder: Path, n: int, n_queries: int) -> dict[str, Any]:
    """Open the index, search it with one query at a time, and plan a batch."""
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    encoder = MadeEncoder(vectors)
    started = time.perf_counter()
    index = Index.open(folder / "index", encoder=encoder)
    opened_s = time.perf_counter() - started
    queries = np.ascontiguousarray(vectors[n:])
    for row in queries[:50]:
        index.search(row[None], K)
    times, found = [], []
    for row in queries:
        started = time.perf_counter()
        _, positions = index.search(row[None], K)
        times.append(time.perf_counter() - started)
        found.append(positions[0])
    build_toy_model(folder / "toy", json.loads((folder / "answers.json").read_text(encoding="utf-8")), vocab_size=8000)
    recipe = folder / "relax.toml"
    recipe.write_text('[template]\nform = "ica"\n[planner]\nstrategy = "relax"\n', encoding="utf-8")
    aligner = Aligner.from_recipe(Recipe.load(recipe), index=index, tokenizer=folder / "toy")
    asked = [Query(str(i), (Turn("user", f"question {n + i}"),)) for i in range(n_queries)]
    started = time.perf_counter()
    plan = aligner.plan(asked)
    planned_s = time.perf_counter() - started
    peak = peak_gib()  # the exact search that follows is the benchmark's own
    exact = nearest(vectors, n, queries)
    recall = np.mean([len(set(a.tolist()) & set(b.tolist())) / K for a, b in zip(found, exact, strict=True)])
    return {
        "queries": n_queries,
        "open_s": round(opened_s, 1),
        "one_query_ms": {
            "median": round(1000 * statistics.median(times), 3),
            "p95": round(1000 * float(np.quantile(times, 0.95)), 3),
        },
        "recall_at_10": round(float(recall), 4),
        "retrieve_plan_and_pack_ms_each": round(1000 * planned_s / n_queries, 2),
        "prompts": sum(isinstance(prompt, Prompt) for prompt in plan.prompts),
        "relevance_kept": round(float(np.nanmean(plan.relevance)), 4),
        "peak_gib": peak,
    }


def nearest(vectors: Vectors, n: int, queries: Vectors, block: int = 50_000) -> Vectors:
    """Positions of the exact nearest by cosine, [m, K]: a matrix product per block, with no index."""
    scores = np.empty((len(queries), 0), dtype=np.float32)
    positions = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, n, block):
        part = queries @ vectors[start : min(start + block, n)].T
        best = np.argpartition(-part, K, axis=1)[:, :K]
        scores = np.concatenate([scores, np.take_along_axis(part, best, axis=1)], axis=1)
        positions = np.concatenate([positions, best + start], axis=1)
        kept = np.argsort(-scores, axis=1)[:, :K]
        scores, positions = (np.take_along_axis(each, kept, axis=1) for each in (scores, positions))
    return positions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pools", type=Path, nargs="+", required=True)
    parser.add_argument("-n", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--step", choices=("make", "build", "use"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.step:
        steps = {
            "make": lambda: make(options.folder, options.pools, options.n, options.queries),
            "build": lambda: build(options.folder, options.n),
            "use": lambda: use(options.folder, options.n, options.queries),
        }
        print(json.dumps(steps[options.step]()))
        return
    result = about("faiss-cpu", "numpy") | {"demonstrations": options.n, "dimension": 384}
    with tempfile.TemporaryDirectory() as folder:
        for step in ("make", "build", "use"):
            command = [sys.executable, __file__, "--step", step, "--folder", folder, "-n", str(options.n)]
            command += ["--queries", str(options.queries), "--pools", *map(str, options.pools)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            result[step] = json.loads(done.stdout.splitlines()[-1])
            print(step, json.dumps(result[step]), file=sys.stderr, flush=True)
    report(result, options.out)


if __name__ == "__main__":
    main()
