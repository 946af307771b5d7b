"""An index larger than memory at one to ten million demonstrations: building, opening, recall and latency, and memory.

    python benchmarks/disk_index.py --pools ../shared/data/pools/lima_1k.jsonl \
        ../shared/data/pools/alpaca_en_demo.json --sizes 1000000 2000000 10000000 \
        --out benchmarks/results/disk_index.json

Vectors are made from MiniLM vectors of the pools' sentences (see `made_vectors`), batch by batch. Answers are 20,000
texts of about 1,500 characters, joined from the same sentences and used again by the number of the row: neighbours on
disk differ, so that they compress as real ones do. The kind is the one that `--on-disk` chooses for each size.

Building, exact search (the truth for recall) and use are processes of their own. `anonymous_gib` is the most memory
that was not of mapped files, sampled every ten milliseconds, and has the benchmark's own batch and texts in it;
`peak_gib` also counts mapped pages while they are resident. Files are cached as far as memory allows, as the steps
before have left them. `first_text_ms` is the time to read a text that is not in memory; a question is a
`DiskRetriever.retrieve` of 20 with the question's vector given, and the texts of its hits.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import numpy as np
from machine import about, peak_gib, report
from made_vectors import MadeEncoder, Maker, Vectors, sentences

from ragalign.encoders import Encoder
from ragalign.indexes import DiskIndex, disk_writing
from ragalign.indexes.on_disk import CANDIDATES, PROBES
from ragalign.pool import Pool
from ragalign.retrieval import DiskRetriever
from ragalign.types import Demonstration

BATCH, SHARD, N_QUERIES, K, HITS = 50_000, 200_000, 200, 10, 20
SOME_PROBES, SOME_CANDIDATES = (16, PROBES, 256), (10, CANDIDATES, 100)
N_ANSWERS, CHARACTERS = 20_000, 1_500


class Anonymous:
    """Samples this process's memory that is not of mapped files, for as long as its block runs."""

    def __init__(self) -> None:
        self._highest, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def gib(self) -> float:
        """The most so far, in GiB."""
        return round(self._highest / 2**20, 2)

    def _sample(self) -> None:
        status = Path("/proc/self/status")
        while not self._done.wait(0.01):
            [line] = [line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("RssAnon:")]
            self._highest = max(self._highest, int(line.split()[1]))


class Timed:
    """Adds up the seconds that are spent in a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        started = time.perf_counter()
        found = self._function(*arguments)
        self.seconds += time.perf_counter() - started
        return found


def make_real(folder: Path, pools: Sequence[Path]) -> None:
    """Write the real vectors that others are made from, and the answers."""
    loaded = Pool.load([str(path) for path in pools], on_error="skip")
    texts = [text for demonstration in loaded for text in (demonstration.instruction, demonstration.response)]
    found = sentences(texts)
    np.save(folder / "real.npy", Encoder.load(precision="auto").encode(found[:6_000]))
    draw, answers = random.Random(0), []
    for _ in range(N_ANSWERS):
        parts: list[str] = []
        # The last sentence goes beyond by half of its length.
        most = draw.uniform(0.5, 1.5) * CHARACTERS - 50
        while sum(map(len, parts)) + len(parts) < most:
            parts.append(draw.choice(found))
        answers.append(" ".join(parts))
    (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


def batches(maker: Maker, answers: Sequence[str], n: int) -> Iterator[tuple[Pool, Vectors]]:
    for start in range(0, n, BATCH):
        size = min(BATCH, n - start)
        rows = (
            # Primes that do not divide N_ANSWERS: neighbours have other answers.
            Demonstration(
                f"{row:,}. {answers[31 * row % N_ANSWERS][:100]}?", f"{answers[7919 * row % N_ANSWERS]} {row}"
            )
            for row in range(start, start + size)
        )
        yield Pool.from_demonstrations(rows), maker.make(size)


def build(folder: Path, n: int) -> dict[str, Any]:
    """Make and index n demonstrations."""
    maker = Maker(np.load(folder / "real.npy"))
    answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    np.save(folder / "queries.npy", maker.make(N_QUERIES))
    source = batches(maker, answers, n)
    making, training = Timed(lambda: next(source, None)), Timed(disk_writing.train)
    started = time.perf_counter()
    with Anonymous() as memory, patch.object(disk_writing, "train", training):
        index = DiskIndex.build(folder / "index", iter(making, None), shard=SHARD)
    seconds = time.perf_counter() - started - making.seconds
    sizes = {file.name: file.stat().st_size for file in (folder / "index").iterdir()}
    return {
        "factory": index.manifest.factory,
        "making_the_input_s": round(making.seconds, 1),
        "build_s": round(seconds, 1),
        "training_s": round(training.seconds, 1),
        "peak_gib": peak_gib(),
        "anonymous_gib": memory.gib,
        "bytes_per_vector": {name: round(size / n, 2) for name, size in sizes.items()},
        "characters_per_answer": round(float(np.mean([len(answer) for answer in answers]))),
    }


def truth(folder: Path, n: int) -> dict[str, Any]:
    """Write the exact neighbours of the queries."""
    index, queries = DiskIndex.open(folder / "index"), np.load(folder / "queries.npy")
    best = np.full((len(queries), 0), -np.inf), np.full((len(queries), 0), -1)
    for start in range(0, n, SHARD):
        scores = queries @ np.asarray(index.vectors[start : start + SHARD]).T
        places = np.argpartition(-scores, HITS, axis=1)[:, :HITS]
        joined = np.concatenate([best[0], np.take_along_axis(scores, places, axis=1)], axis=1)
        rows = np.concatenate([best[1], places + start], axis=1)
        order = np.argsort(-joined, axis=1)[:, :HITS]
        best = np.take_along_axis(joined, order, axis=1), np.take_along_axis(rows, order, axis=1)
    np.save(folder / "truth.npy", best[1])
    return {}


def use(folder: Path, n: int) -> dict[str, Any]:
    """Open, search one query at a time, and read texts."""
    queries, expected = np.load(folder / "queries.npy"), np.load(folder / "truth.npy")
    with Anonymous() as memory:
        started = time.perf_counter()
        index = DiskIndex.open(folder / "index", encoder=MadeEncoder(queries))
        open_s = time.perf_counter() - started

        def searched(probes: int, candidates: int) -> dict[str, float]:
            def search(query: Vectors) -> list[int]:
                return index.search(query[None], K, probes=probes, candidates=candidates)[1][0].tolist()

            return measured(search, queries, expected[:, :K])

        by_probes = {str(probes): searched(probes, CANDIDATES) for probes in SOME_PROBES}
        by_candidates = {str(candidates): searched(PROBES, candidates) for candidates in SOME_CANDIDATES}
        unread = np.random.default_rng(1).choice(n, N_QUERIES, replace=False).tolist()
        texts = measured(lambda place: [index.pool[place]], unread)
        retriever = DiskRetriever(index)

        def ask(number: int) -> list[int]:
            hits = retriever.retrieve([str(number)], HITS)[0]
            return [index.pool.position(index.pool.get(hit.id).id) for hit in hits]

        question = measured(ask, range(N_QUERIES), expected)
    return {
        "open_s": round(open_s, 3),
        "probes": by_probes,
        "candidates": by_candidates,
        "first_text_ms": {"median": texts["median_ms"], "p99": texts["p99_ms"]},
        "question": {"k": HITS, "probes": PROBES, "candidates": CANDIDATES, **question},
        "peak_gib": peak_gib(),
        "anonymous_gib": memory.gib,
    }


def measured(
    call: Callable[[Any], list[Any]], arguments: Sequence[Any] | Vectors, expected: Vectors | None = None
) -> dict[str, float]:
    """The time of a call, and the share of what is expected in its result."""
    seconds, found = [], []
    for argument in arguments:
        started = time.perf_counter()
        found.append(call(argument))
        seconds.append(time.perf_counter() - started)
    result = {}
    if expected is not None:
        k = expected.shape[1]
        shared = [len(set(a) & set(b.tolist())) / k for a, b in zip(found, expected, strict=True)]
        result[f"recall_at_{k}"] = round(float(np.mean(shared)), 4)
    return result | {
        "median_ms": round(1e3 * float(np.median(seconds)), 2),
        "p99_ms": round(1e3 * float(np.quantile(seconds, 0.99)), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=Path, nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 2_000_000, 10_000_000])
    parser.add_argument("--made", type=Path, help="folder for real vectors and answers: made there once, from --pools")
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
        made = arguments.made or folder
        if not (made / "answers.json").exists():
            made.mkdir(parents=True, exist_ok=True)
            make_real(made, arguments.pools)
        if made != folder:
            shutil.copytree(made, folder, dirs_exist_ok=True)
        for n in arguments.sizes:
            found[str(n)] = {"n": n}
            for step in steps:
                command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--sizes", str(n)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                found[str(n)] |= {step: json.loads(done.stdout.splitlines()[-1])} if step != "truth" else {}
                report({**about("faiss-cpu"), "factory": "auto", "sizes": found}, arguments.out)
            shutil.rmtree(folder / "index")


if __name__ == "__main__":
    main()
