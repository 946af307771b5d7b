"""What 100 million demonstrations take: disk, memory, hours. Calculated from measured runs, and checked on one.

    python benchmarks/scale.py --out benchmarks/results/scale.json

The basis is what was measured here: `results/disk_index.json` (building and searching a `DiskIndex`),
`results/encoders.json` (texts encoded per second on two cores) and `results/gpu_8b.json` (answers per second of an 8B
model on one GPU). Sizes and building grow with the number of vectors, the coarse quantiser with its lists, encoding and
answering with the number of workers. As a check, the same formulas are compared with the largest measured index. Time
to read texts and network are left out, and of training only what the measured build took: 65,536 lists take longer. All
figures for sizes that were not run are calculated.
"""

from __future__ import annotations

import argparse
import json
from math import ceil
from pathlib import Path
from typing import Any

from machine import about, report

RESULTS = Path(__file__).resolve().parent / "results"
DIMENSION, CODE_BYTES, ID_BYTES, FLOAT_BYTES = 384, 48, 8, 4
# FAISS keeps two links per connection of its lowest level, of four bytes each.
HNSW_BYTES_PER_LIST = 2 * 32 * 4
# zstd leaves about this much of an instruction and an answer of 1,500 characters.
TEXT_BYTES = 700
# Vectors that a search scans: lists grow with the square root, as in FAISS's guidelines.
LISTS = {1_000_000: 4096, 10_000_000: 16_384, 100_000_000: 65_536}
GPUS, CORES = (1, 8, 32), (16, 64, 256)


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def index_of(n: int, lists: int) -> dict[str, float]:
    """Bytes of an index, in GB, and the memory that a search cannot do without."""
    return {
        "vectors_gb": round(n * DIMENSION * FLOAT_BYTES / 1e9, 3),
        "lists_gb": round(n * (CODE_BYTES + ID_BYTES) / 1e9, 3),
        "texts_gb": round(n * TEXT_BYTES / 1e9, 1),
        "centroids_gb": round(lists * (DIMENSION * FLOAT_BYTES + HNSW_BYTES_PER_LIST) / 1e9, 4),
    }


def check(largest: dict[str, Any]) -> dict[str, Any]:
    """What the same formulas say of the largest measured index, beside what it takes, in bytes per vector."""
    n, found = largest["n"], largest["build"]["bytes_per_vector"]
    parts = index_of(n, 4096)
    return {
        "n": n,
        "vectors": {"calculated": parts["vectors_gb"] * 1e9 / n, "measured": found["vectors.f32"]},
        "lists": {"calculated": parts["lists_gb"] * 1e9 / n, "measured": found["lists.ivf"]},
        "centroids": {"calculated": round(parts["centroids_gb"] * 1e9 / n, 1), "measured": found["lists.faiss"]},
    }


def calculate() -> dict[str, Any]:
    disk, encoders, gpu = _result("disk_index"), _result("encoders"), _result("gpu_8b")
    measured = disk["sizes"]
    largest = measured[max(measured, key=int)]
    build_s = largest["build"]["build_s"] / largest["n"]
    texts_per_core_s = encoders["texts_per_s"]["bfloat16"] / 2
    answers_s = gpu["settings"]["relax-0.98"]["requests_per_s"]
    n = 100_000_000
    lists = LISTS[n]
    # A probe of 64 lists: what it scans, against what the largest measured index scanned.
    scanned = 64 * n / lists
    basis = 64 * largest["n"] / 4096
    parts = index_of(n, lists)
    return {
        "check": check(largest),
        "demonstrations": n,
        "factory": f"IVF{lists}_HNSW32,PQ{CODE_BYTES}",
        **parts,
        "disk_gb": round(sum(parts.values()), 1),
        "memory_gb": round(parts["centroids_gb"] + largest["use"]["anonymous_gib"], 1),
        "memory_with_lists_cached_gb": round(parts["centroids_gb"] + parts["lists_gb"] + 1, 1),
        "search_ms_64_probes_cached": round(largest["use"]["probes"]["64"]["median_ms"] * scanned / basis, 1),
        "index_hours_two_cores": round(n * build_s / 3600, 1),
        "encode_hours_by_cores": {str(cores): round(n / (texts_per_core_s * cores) / 3600, 1) for cores in CORES},
        "million_prompts_hours_by_gpus": {str(gpus): round(1e6 / (answers_s * gpus) / 3600, 2) for gpus in GPUS},
        "shards_of_200000": ceil(n / 200_000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    report({**about("faiss-cpu"), "calculated": True, **calculate()}, arguments.out)


if __name__ == "__main__":
    main()
