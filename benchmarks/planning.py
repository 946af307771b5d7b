"""Planning: tokens prefilled per request against relevance kept, what planning costs, and a peer.

    python benchmarks/planning.py --data ../shared/data --contextpilot /tmp/contextpilot/bin/python \
        --out benchmarks/results/planning.json

The workload is `planning_workload.py`'s. Tokens prefilled are those that the simulated prefix cache (blocks of 16, no
limit unless said) does not have; the simulator is tested against the engine. `--contextpilot` is the Python of an
environment that holds ContextPilot 0.5.0, which installs an import hook and so gets one of its own:
`pip install --no-deps contextpilot==0.5.0; pip install numpy scipy tqdm`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from planning_workload import Workload, load_workload

from ragalign.planning import OnlinePlanner, Plan, Planner, PlannerSettings, PrefixCache
from ragalign.planning.frontier import measure, n_prefilled
from ragalign.types import Hit, Prompt, Turn

N_CANDIDATES = 100
N_PLAIN = 20
MANY = (5_000, 10_000)
COSTLY = ("relax", "reorder")
SETTINGS: list[dict[str, Any]] = [
    {"strategy": "none"},
    {"strategy": "reorder"},
    {"strategy": "reorder", "personal": 0},
    *({"strategy": "relax", "min_relevance": floor} for floor in (0.99, 0.98, 0.96, 0.915, 0.88)),
    *({"strategy": "backbone", "min_relevance": floor} for floor in (0.98, 0.96, 0.915)),
    *({"strategy": "hybrid", "min_relevance": floor} for floor in (0.98, 0.915)),
    {"strategy": "hybrid", "min_relevance": 0.555, "candidates": 2968},
]
TARGETS = {0.98: 1950, 0.96: 1780, 0.915: 1600, 1.0: 2200}


def rounded(point: Any) -> dict[str, Any]:
    digits = {"relevance": 4, "similarity": 4, "n_demonstrations": 2, "seconds": 3}
    return {
        name: round(value, digits.get(name, 1)) if isinstance(value, float) and name != "min_relevance" else value
        for name, value in asdict(point).items()
    }


def settings_of(**options: Any) -> PlannerSettings:
    return PlannerSettings(**{"candidates": N_CANDIDATES, **options})


def planned(workload: Workload, hits: list[list[Hit]], settings: PlannerSettings) -> tuple[Plan, float]:
    turns = [[Turn("user", query)] for query in workload.queries]
    start = time.process_time()
    plan = Planner(workload.packer, settings).plan(turns, hits, n_plain=N_PLAIN)
    return plan, time.process_time() - start


def check(plan: Plan, hits: list[list[Hit]], personal: int, max_tokens: int) -> None:
    """The promises: the budget, and the most similar demonstrations of the plain choice last."""
    for prompt, plain in zip(plan.prompts, hits, strict=True):
        assert isinstance(prompt, Prompt)
        assert prompt.n_demonstration_tokens <= max_tokens
        dropped = {demonstration.id for demonstration in prompt.dropped if demonstration.reason != "planned"}
        best = [hit.id for hit in plain[:N_PLAIN] if hit.id not in dropped][:personal]
        assert [demonstration.id for demonstration in prompt.demonstrations][
            len(prompt.demonstrations) - len(best) :
        ] == best[::-1]


def small_cache(plans: dict[str, Plan]) -> list[dict[str, Any]]:
    """The gain of a plan with a cache of 2,000 blocks, in planned order and in input order."""
    rows = []
    for name, plan in plans.items():
        unsorted = Plan(plan.prompts, sorted(plan.order), plan.relevance)
        per_request = {"unlimited": n_prefilled(plan, 16), "planned_order": n_prefilled(plan, 16, 2000)}
        per_request["input_order"] = n_prefilled(unsorted, 16, 2000)
        rows.append({"setting": name} | {key: round(n / len(plan.order), 1) for key, n in per_request.items()})
    return rows


def online(workload: Workload, hits: list[list[Hit]], settings: PlannerSettings) -> dict[str, Any]:
    """One request after another, in the order of the input, each reported back."""
    planner = OnlinePlanner(workload.packer, settings)
    cache, prompts, total = PrefixCache(16), [], 0
    spent = 0.0
    for query, found in zip(workload.queries, hits, strict=True):
        start = time.process_time()
        prompt = planner.pack([Turn("user", query)], found, n_plain=N_PLAIN)
        spent += time.process_time() - start
        n_cached = cache.ask(prompt.ids)
        planner.learn(prompt, n_cached)
        total += len(prompt.ids) - n_cached
        prompts.append(prompt)
    plain = workload.packer.choose_many([[Turn("user", query)] for query in workload.queries], [h[:20] for h in hits])
    kept = [ndcg(prompt, [hit.score for hit in choice.chosen]) for prompt, choice in zip(prompts, plain, strict=True)]
    return {
        "strategy": settings.strategy,
        "min_relevance": settings.min_relevance,
        "personal": settings.personal,
        "relevance": round(float(np.mean(kept)), 4),
        "n_demonstrations": round(float(np.mean([len(prompt.demonstrations) for prompt in prompts])), 2),
        "n_prompt_tokens": round(float(np.mean([len(prompt.ids) for prompt in prompts])), 1),
        "n_prefilled": round(total / len(prompts), 1),
        "processor_ms_per_request": round(1000 * spent / len(prompts), 3),
    }


def ndcg(prompt: Prompt, plain: list[float]) -> float:
    """The definition again, from scores alone."""

    def dcg(scores: list[float]) -> float:
        ranked = sorted((max(score, 0.0) for score in scores), reverse=True)
        return sum(gain / np.log2(rank + 1) for rank, gain in enumerate(ranked, 1))

    return dcg([demonstration.score or 0.0 for demonstration in prompt.demonstrations]) / dcg(plain)


def contextpilot(python: str, workload: Workload, hits: list[list[Hit]]) -> dict[str, Any]:
    packer = workload.packer
    turns = [[Turn("user", query)] for query in workload.queries]
    choices = packer.choose_many(turns, [found[:N_PLAIN] for found in hits])
    number = {id_: n for n, id_ in enumerate(workload.index.pool.ids)}
    given = [[number[hit.id] for hit in choice.chosen] for choice in choices]
    script = Path(__file__).with_name("planning_contextpilot.py")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [python, str(script)], input=json.dumps(given), stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    answer = json.loads(run.stdout.splitlines()[-1])
    prompts: list[Any] = [None] * len(choices)
    for items, row in zip(answer["sets"], answer["order"], strict=True):
        assert sorted(items) == sorted(given[row])
        by_number = {number[hit.id]: hit for hit in choices[row].chosen}
        prompts[row] = packer.assemble(choices[row], [by_number[item] for item in items])
    plan = Plan(prompts, answer["order"], [1.0] * len(prompts))
    point = measure(plan, PlannerSettings(strategy="reorder", personal=0), seconds=answer["seconds"])
    return {"version": answer["version"]} | rounded(point) | {"strategy": "ContextPilot reorder"}


def many(workload: Workload, settings: PlannerSettings, n: int) -> dict[str, Any]:
    """The time that planning adds to packing for `n` queries: mixtures of two of the workload's vectors."""
    random = np.random.default_rng(0)
    vectors = workload.index.encoder.encode(workload.queries)
    mixed = vectors[random.integers(len(vectors), size=n)] + 0.7 * vectors[random.integers(len(vectors), size=n)]
    mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
    scores = mixed @ workload.index.encoder.encode(workload.index.pool.instructions).T
    nearest = np.argsort(-scores, axis=1)[:, : settings.candidates]
    ids = workload.index.pool.ids
    hits = [
        [Hit(ids[column], float(scores[row, column]), rank) for rank, column in enumerate(columns, 1)]
        for row, columns in enumerate(nearest.tolist())
    ]
    turns = [[Turn("user", workload.queries[row % len(workload.queries)])] for row in range(n)]
    planner = Planner(workload.packer, settings)

    def cost(work: Callable[[], object]) -> float:
        start = time.process_time()
        work()
        return 1000 * (time.process_time() - start) / n

    packing = cost(lambda: workload.packer.pack_many(turns, [found[:N_PLAIN] for found in hits]))
    both = cost(lambda: planner.plan(turns, hits, n_plain=N_PLAIN))
    tracemalloc.start()
    plan = planner.plan(turns, hits, n_plain=N_PLAIN)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "strategy": settings.strategy,
        "n_requests": n,
        "candidates": settings.candidates,
        "packing_ms": round(packing, 3),
        "planning_and_packing_ms": round(both, 3),
        "planning_ms": round(both - packing, 3),
        "peak_kib_per_request": round(peak / 1024 / n, 1),
        "relevance": round(float(np.mean(plan.relevance)), 4),
    }


SECTIONS = ("strategies", "small_cache", "online", "contextpilot", "many_requests")


def strategies(workload: Workload, hits: list[list[Hit]]) -> list[dict[str, Any]]:
    """Every setting on the workload, its promises checked."""
    points = []
    for setting in SETTINGS:
        settings = settings_of(**setting)
        plan, seconds = planned(workload, hits, settings)
        if settings.strategy != "none":
            check(plan, hits, settings.personal, workload.packer.packing.max_tokens)
        points.append(rounded(measure(plan, settings, seconds=seconds)))
        print(points[-1], file=sys.stderr, flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--contextpilot", help="Python of an environment that holds ContextPilot")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="what to measure; everything by default")
    parser.add_argument("--out", type=Path, help="sections that are in this file already stay, unless measured again")
    options = parser.parse_args()
    chosen = options.section or SECTIONS
    workload = load_workload(options.data)
    hits = workload.candidates(len(workload.index.pool) if "strategies" in chosen else N_CANDIDATES)
    planned(workload, hits, settings_of(strategy="none"))  # tokenises the demonstrations, once

    plain, relax = settings_of(strategy="none"), settings_of(strategy="relax")
    work: dict[str, Callable[[], object]] = {
        "strategies": lambda: strategies(workload, hits),
        "small_cache": lambda: small_cache(
            {planner.strategy: planned(workload, hits, planner)[0] for planner in (plain, relax)}
        ),
        "online": lambda: [
            online(workload, hits, settings_of(**planner))
            for planner in (
                {"strategy": "reorder"},
                {"strategy": "relax", "min_relevance": 0.98},
                {"strategy": "relax", "min_relevance": 0.96},
            )
        ],
        "contextpilot": lambda: contextpilot(options.contextpilot, workload, hits),
        "many_requests": lambda: [many(workload, settings_of(strategy=name), n) for name in COSTLY for n in MANY],
    }
    result: dict[str, Any] = {
        "workload": {"n_queries": len(workload.queries), "n_demonstrations": len(workload.index.pool)},
        "block_size": 16,
        "seconds_are": "processor time of planning and packing the batch; ContextPilot: wall time of its reorder",
        "targets": TARGETS,
    }
    if options.out and options.out.exists():
        result = json.loads(options.out.read_text(encoding="utf-8")) | result
    for name in chosen:
        if name == "contextpilot" and not options.contextpilot:
            print("ContextPilot left out: --contextpilot names no Python that has it", file=sys.stderr)
            continue
        result[name] = {
            "command": "python " + " ".join(sys.argv),
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "results": work[name](),
            "load_average": [round(load, 1) for load in os.getloadavg()],
        }
        print(f"{name}: done", file=sys.stderr, flush=True)
        if options.out:
            options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
