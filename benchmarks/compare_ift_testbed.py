"""Demonstrations in context against fine-tuning, on the testbed: what its construction implies, then what is measured.

    python benchmarks/compare_ift_testbed.py --out benchmarks/results/compare_ift_testbed.json --page docs/compare-ift

The pool holds ten demonstrations of each of 200 topics, and every topic has a house style of its own that nothing else
tells. An answer is right if it is the one right answer (exact match). The testbed's model looks styles up in its
context, which is all that it was trained for.

What that implies, written down before the first run. N demonstrations drawn at random cover a part c(N) of the topics:

1. No method that knows only these N can be right on more than c(N) of the prompts, chance aside.
2. *retrieved* finds a covered topic's demonstrations, so it comes near c(N), times the model's own accuracy.
3. *constant* shows at most as many as fit into a prompt, and N/200 of the topics at best, so that it stays near c(N)
   while all N fit, and falls behind *retrieved* where they do not.
4. *retrieved-pool* does not depend on N and comes near the model's own accuracy.
5. Fine-tuning must memorise the styles of the N, from one to ten examples of each, with a model that was never
   trained to do so. It stays below c(N), hence below *retrieved* at every N, and gains most at the largest N.
6. *zero-shot* is right by chance only: 1 in 24 x 8 x 24.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.pool import Pool
from ragalign.pool.queries import read_queries
from ragalign.recipes import data_folder
from ragalign.studies.fine_tuning.cells import METHODS, Cell, drawn
from ragalign.studies.fine_tuning.figures import CurvePoint, break_even, points
from ragalign.studies.fine_tuning.page import write_pages
from ragalign.studies.fine_tuning.running import FineTuningSettings, run
from ragalign.studies.fine_tuning.training import Training
from ragalign.types import Query

RECIPE = """\
[template]
form = "package:testbed/template.toml"

[retriever]
name = "dense"
candidates = 9

[packing]
max_demonstrations = 12
max_tokens = 1600

[decoding]
max_tokens = 64
"""


def coverage(pool: Pool, queries: list[Query], sizes: list[int], seeds: int) -> dict[int, float]:
    """The share of queries whose topic is among N demonstrations, over all seeds."""
    found = {}
    for n in sizes:
        hits = []
        for seed in range(seeds):
            topics = {pool[place].metadata["topic"] for place in drawn(pool, Cell("retrieved", n, seed))}
            hits += [query.metadata["topic"] in topics for query in queries]
        found[n] = sum(hits) / len(hits)
    return found


def checks(found: list[CurvePoint], covered: dict[int, float]) -> dict[str, dict[str, object]]:
    """Each thing that the construction implies, the figures that decide it, and whether it holds."""
    quality = {(result.method, result.n): result.quality.value for result in found}
    whole, zero = quality["retrieved-pool", None], quality["zero-shot", None]
    by = {
        method: {n: round(quality[method, n], 3) for n in covered}
        for method in METHODS
        if (method, max(covered)) in quality
    }
    slack = 0.03
    tuned = [by[method] for method in ("lora", "full") if method in by]
    shown = {n: round(value, 3) for n, value in covered.items()}
    found_: dict[str, tuple[object, bool]] = {
        "1. none is above the coverage": (
            {"coverage": shown, **by},
            all(value <= covered[n] + slack for qualities in by.values() for n, value in qualities.items()),
        ),
        "2. retrieved comes near the coverage": (
            by["retrieved"],
            all(value >= 0.75 * covered[n] * whole - slack for n, value in by["retrieved"].items()),
        ),
        "3. constant stays near the coverage while all fit, and falls behind where not": (
            by["constant"],
            by["constant"][max(covered)] < by["retrieved"][max(covered)] - slack,
        ),
        "4. the whole pool comes near the model's accuracy": (round(whole, 3), whole > 0.8),
        "5. fine-tuning stays below retrieved at every N and gains most at the largest": (
            {method: by[method] for method in ("lora", "full") if method in by},
            all(values[n] <= by["retrieved"][n] + slack for values in tuned for n in values)
            and all(values[max(values)] == max(values.values()) for values in tuned),
        ),
        "6. zero-shot is right by chance only": (round(zero, 3), zero <= 0.05),
    }
    return {name: {"measured": value, "holds": holds} for name, (value, holds) in found_.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", type=Path, default=data_folder() / "testbed" / "model")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--sizes", default="3,10,30,100,300,1000")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--work", type=Path, help="folder of the run, to go on with if it is interrupted")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", type=Path, help="folder for the page and the plot")
    options = parser.parse_args()
    started = time.perf_counter()
    data = data_folder() / "testbed"
    sizes = [int(part) for part in options.sizes.split(",")]
    base, out, page, work = (
        path and path.resolve() for path in (options.base, options.out, options.page, options.work)
    )
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # so that results name the model and the recipe, not where they are
        shutil.copytree(base, "testbed")
        Path("testbed.toml").write_text(RECIPE, encoding="utf-8")
        index = Index.build(Pool.load(data / "pool.jsonl"), Encoder.load())
        queries = read_queries(data / "queries.jsonl")[: options.queries]
        settings = FineTuningSettings(
            base="testbed",
            recipe="testbed.toml",
            methods=METHODS,
            sizes=tuple(sizes),
            seeds=options.seeds,
            training=Training(
                epochs=options.epochs,
                batch_size=32,
                per_device=32,
                learning_rate=2e-3,
                lora_learning_rate=5e-3,
            ),
            backend="transformers",
            options={"dtype": "float32", "batch_size": 25},
        )
        results = run(settings, index, queries, work or Path("run"))
        found = points(results)
        pairs = break_even(found)
        covered = coverage(index.pool, queries, sizes, options.seeds)
        if page:
            page.mkdir(parents=True, exist_ok=True)
            write_pages(settings, found, pairs, len(queries), page, created=datetime.now(UTC))
        os.chdir(data)
    result = {
        "command": "python " + " ".join(sys.argv),
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "seconds": round(time.perf_counter() - started),
        "processor_seconds": round(time.process_time()),
        "n_queries": len(queries),
        "seeds": options.seeds,
        "epochs": options.epochs,
        "coverage": covered,
        "implied": checks(found, covered),
        "points": [result.to_dict() for result in found],
        "break_even": [pair.to_dict() for pair in pairs],
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    if out:
        out.write_text(text, encoding="utf-8")
    sys.stdout.write(json.dumps(result["implied"], indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
