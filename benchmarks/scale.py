"""What 100 million demonstrations take: disk, memory, hours. Calculated from measured runs, and checked on one.

    python benchmarks/scale.py --out benchmarks/results/scale.json

The basis is what was measured here: `results/disk_index.json` (building and searching a `DiskIndex`),
`results/encoders.json` (texts encoded per second on two cores; the command's default is float32) and
`results/gpu_8b.json` (answers per second of an 8B model on one GPU). The kind is the one that `--on-disk` chooses.

Files grow with the number of vectors, the coarse quantiser with its lists. Training grows with the comparisons of
k-means, which are training vectors times lists; the rest of the build with the number of vectors. A search grows with
the vectors in the lists that it scans. Encoding and answering are divided by the number of workers. Texts take what
they take in the measured index. Reads from a disk and network are left out: all files count as cached.

The basis is the largest measured size. As a check, the same formulas calculate it from the next smaller one, which
should have more than a million vectors: up to there, `--on-disk` chooses other codes. All figures for 100 million are
calculated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
from machine import about, report

from ragalign.indexes.disk_writing import FAISS, IDS, LISTS, POOL, VECTORS, sample_size
from ragalign.indexes.kinds import choose_on_disk
from ragalign.indexes.on_disk import CANDIDATES, PROBES
from ragalign.retrieval.on_disk import SLACK

RESULTS = Path(__file__).resolve().parent / "results"
N, DIMENSION, HITS = 100_000_000, 384, 20
FLOAT_BYTES, ID_BYTES, SORTING_BYTES = 4, 8, 20
# A list on disk has a size, a capacity and an offset.
LIST_BYTES = 3 * 8
# FAISS keeps two links per connection of a graph's lowest level, of four bytes each, and about 16 bytes more a node.
HNSW_BYTES = 2 * 32 * 4 + 16
CORES, GPUS = (16, 64, 256), (1, 8, 32)


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


class Size:
    """What follows from the number of demonstrations alone."""

    def __init__(self, n: int) -> None:
        self.n, self.factory = n, choose_on_disk(n, DIMENSION)
        index = faiss.index_factory(DIMENSION, self.factory)
        ivf = faiss.extract_index_ivf(index)
        self.lists = int(ivf.nlist)
        graph = HNSW_BYTES if "HNSW" in self.factory else 0
        codebook = DIMENSION * FLOAT_BYTES * (256 if "PQ" in self.factory else 2)
        self.sample = sample_size(n, self.lists)
        self.bytes = {
            VECTORS: n * DIMENSION * FLOAT_BYTES,
            LISTS: n * (ivf.code_size + ID_BYTES),
            IDS: n * 16,
            FAISS: self.lists * (DIMENSION * FLOAT_BYTES + graph + LIST_BYTES) + codebook,
        }

    @property
    def comparisons(self) -> int:
        """Of one iteration of k-means."""
        return self.sample * self.lists

    @property
    def scanned(self) -> float:
        """Vectors in the lists of a search, if all lists are equally long."""
        return min(PROBES, self.lists) * self.n / self.lists


def calculate(n: int, basis: Mapping[str, Any]) -> dict[str, float]:
    """Seconds and milliseconds for n demonstrations, from a measured size."""
    size, measured = Size(n), Size(basis["n"])
    build, use = basis["build"], basis["use"]
    training_s = build["training_s"] * size.comparisons / measured.comparisons
    return {
        "training_s": round(training_s, 1),
        "build_s": round(training_s + (build["build_s"] - build["training_s"]) * n / basis["n"], 1),
        "query_ms": round(use["probes"][str(PROBES)]["median_ms"] * size.scanned / measured.scanned, 1),
    }


def check(basis: Mapping[str, Any], largest: Mapping[str, Any]) -> dict[str, Any]:
    """What is calculated for the largest measured size from a smaller one, beside what it takes."""
    n, found = largest["n"], largest["build"]["bytes_per_vector"]
    calculated = calculate(n, basis)
    takes = {
        "training_s": largest["build"]["training_s"],
        "build_s": largest["build"]["build_s"],
        "query_ms": largest["use"]["probes"][str(PROBES)]["median_ms"],
    }
    per_vector = {name: bytes_ / n for name, bytes_ in Size(n).bytes.items()}
    per_vector[POOL] = basis["build"]["bytes_per_vector"][POOL]
    names = {VECTORS: "vectors", LISTS: "lists", IDS: "ids", POOL: "texts", FAISS: "centroids"}
    return {
        "n": n,
        "from": basis["n"],
        **{
            name: {"calculated": round(per_vector[file], 1), "measured": round(found[file], 1)}
            for file, name in names.items()
        },
        **{name: {"calculated": calculated[name], "measured": measured} for name, measured in takes.items()},
    }


def scaled() -> dict[str, Any]:
    """The figures for `N` demonstrations."""
    measured = sorted(_result("disk_index")["sizes"].values(), key=lambda size: size["n"])
    encoders, gpu = _result("encoders"), _result("gpu_8b")
    basis, smaller = measured[-1], measured[-2 if len(measured) > 1 else -1]
    answers_s = gpu["settings"]["relax-0.98"]["requests_per_s"]
    size, times = Size(N), calculate(N, basis)
    gb = {name: bytes_ / 1e9 for name, bytes_ in size.bytes.items()}
    gb[POOL] = N * basis["build"]["bytes_per_vector"][POOL] / 1e9
    # The measured process held a smaller quantiser.
    others_gb = basis["use"]["anonymous_gib"] * 2**30 / 1e9 - Size(basis["n"]).bytes[FAISS] / 1e9
    memory_gb = gb[FAISS] + max(others_gb, 0)
    raw = (HITS + SLACK) * CANDIDATES

    def hours(precision: str) -> dict[str, float]:
        per_core = encoders["texts_per_s"][precision] / 2
        return {str(cores): round(N / (per_core * cores) / 3600, 1) for cores in CORES}

    return {
        "check": check(smaller, basis),
        "demonstrations": N,
        "basis": basis["n"],
        "factory": size.factory,
        "vectors_gb": round(gb[VECTORS], 1),
        "lists_gb": round(gb[LISTS], 1),
        "ids_gb": round(gb[IDS], 1),
        "texts_gb": round(gb[POOL], 1),
        "centroids_gb": round(gb[FAISS], 3),
        "disk_gb": round(sum(gb.values()), 1),
        "building_disk_gb": round(sum(gb.values()) + gb[LISTS], 1),
        "memory_gb": round(memory_gb, 1),
        "memory_with_lists_cached_gb": round(memory_gb + gb[LISTS], 1),
        "training_vectors": size.sample,
        "training_sample_gb": round(size.sample * DIMENSION * FLOAT_BYTES / 1e9, 1),
        "sorting_ids_gb": round(N * SORTING_BYTES / 1e9, 1),
        "search_ms_64_probes_cached": times["query_ms"],
        "raw_vectors_a_question": raw,
        "raw_vectors_a_question_mb": round(raw * DIMENSION * FLOAT_BYTES / 1e6, 1),
        "training_hours_two_cores": round(times["training_s"] / 3600, 1),
        "index_hours_two_cores": round(times["build_s"] / 3600, 1),
        "encode_precision": "float32",
        "encode_hours_by_cores": hours("float32"),
        "encode_hours_by_cores_bfloat16": hours("bfloat16"),
        "million_prompts_hours_by_gpus": {str(gpus): round(1e6 / (answers_s * gpus) / 3600, 2) for gpus in GPUS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report({**about("faiss-cpu"), "calculated": True, **scaled()}, arguments.out)


if __name__ == "__main__":
    main()
