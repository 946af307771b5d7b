"""The effect of planning on answers: exact match on the testbed and the price of each strategy.

    python benchmarks/planning_testbed.py --out benchmarks/results/planning_testbed.json

The testbed's model, pool and queries come with the package. Nine demonstrations, dense retrieval, greedy decoding with
transformers; tokens prefilled are simulated (blocks of 16, no limit). A strategy that loses more than 2 points at its
default floor should not be a default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import report

from ragalign.aligner import Aligner
from ragalign.encoders import Encoder
from ragalign.generation import make_generator
from ragalign.indexes import Index
from ragalign.packing import Packer, Packing
from ragalign.planning import PlannerSettings
from ragalign.planning.frontier import measure
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.retrieval import make_retriever
from ragalign.statistics import mean, paired_difference
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding, Prompt, Query, Turn

FOLDER = data_folder() / "testbed"
SETTINGS: list[dict[str, Any]] = [
    {"strategy": "none"},
    {"strategy": "reorder"},
    *({"strategy": "relax", "min_relevance": floor} for floor in (0.98, 0.96, 0.915)),
    {"strategy": "backbone"},
    {"strategy": "hybrid"},
]


def points(estimate: Any) -> dict[str, float]:
    scaled = estimate.scaled(100)
    return {"points": round(scaled.value, 1), "low": round(scaled.low, 1), "high": round(scaled.high, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, help="how many; all by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = [json.loads(line) for line in (FOLDER / "queries.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = rows[: options.queries]
    queries = [Query(row["id"], (Turn("user", row["instruction"]),)) for row in rows]
    index = Index.build(Pool.load(FOLDER / "pool.jsonl"), Encoder.load())
    template, tokenizer = Template.load(FOLDER / "template.toml"), Tokenizer.load(FOLDER / "model")
    generator = make_generator("transformers", model=str(FOLDER / "model"), dtype="float32", batch_size=100)
    packing = Packing(9, max_tokens=10**6, max_demonstration_tokens=10**6)
    packer = Packer(template, tokenizer, index.pool, packing=packing, context_length=generator.context_length)
    decoding = Decoding(temperature=0.0, max_tokens=64)
    found: list[dict[str, Any]] = []
    plain = None
    for setting in SETTINGS:
        settings = PlannerSettings(**setting)
        aligner = Aligner(packer, make_retriever("dense", index), generator, planner=settings, decoding=decoding)
        plan = aligner.plan(queries)
        prompts = [prompt for prompt in plan.prompts if isinstance(prompt, Prompt)]
        answers = generator.generate(prompts, decoding)
        right = np.array(
            [
                float(template.clean(answer.text, finished=answer.finish_reason != "length") == row["reference"])
                for answer, row in zip(answers, rows, strict=True)
            ]
        )
        plain = right if plain is None else plain
        point = measure(plan, settings)
        found.append(
            {
                "strategy": settings.strategy,
                "min_relevance": settings.min_relevance,
                "relevance": round(point.relevance, 4),
                "n_prompt_tokens": round(point.n_prompt_tokens, 1),
                "n_prefilled": round(point.n_prefilled, 1),
                "exact_match": points(mean(right)),
                "minus_none": points(paired_difference(right, plain)),
            }
        )
        print(found[-1], file=sys.stderr, flush=True)
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "faiss-cpu", "numpy")},
        "metric": "exact match of the whole answer, in points; 95 % paired bootstrap over queries",
        "n_queries": len(queries),
        "n_pool": len(index.pool),
        "strategies": found,
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
