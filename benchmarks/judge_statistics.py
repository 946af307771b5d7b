"""Time and memory of the statistics, beside SciPy's bootstrap where it does the same.

    python benchmarks/judge_statistics.py --out benchmarks/results/judge_statistics.json

Not called statistics.py: a script of that name would hide Python's own module.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import report

from ragalign.statistics import PairOutcome, fit_bradley_terry, mean, paired_difference, shares

N_PROMPTS, N_RESAMPLES, REPEATS = 805, 10_000, 5


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = call()
        best = min(best, time.perf_counter() - start)
    return round(best, 4), result


def comparisons(generator: np.random.Generator, n_systems: int) -> list[PairOutcome]:
    strengths = generator.normal(size=n_systems)
    found = []
    for prompt in range(N_PROMPTS):
        first, second = generator.choice(n_systems, 2, replace=False)
        odds = np.exp([-(strengths[first] - strengths[second]) / 2, -0.5, (strengths[first] - strengths[second]) / 2])
        outcome = generator.choice([0.0, 0.5, 1.0], p=odds / odds.sum())
        found.append(PairOutcome(prompt, str(first), str(second), float(outcome)))
    return found


def measure() -> dict[str, Any]:
    from scipy import stats

    generator = np.random.default_rng(0)
    first, second = generator.random(N_PROMPTS), generator.random(N_PROMPTS)
    five_samples, prompts = generator.random(300 * 5), np.repeat(np.arange(300), 5)
    preferences = generator.choice([0.0, 0.5, 1.0], N_PROMPTS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    paired_s, estimate = timed(lambda: paired_difference(first, second))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    scipy_s, theirs = timed(
        lambda: stats.bootstrap(
            (first, second), lambda a, b, axis: np.mean(a - b, axis=axis), paired=True, n_resamples=N_RESAMPLES,
            method="percentile", rng=np.random.default_rng(0),
        ).confidence_interval
    )  # fmt: skip
    pairs = comparisons(generator, 6)
    return {
        "paired_difference_805_prompts_s": paired_s,
        "paired_difference_interval": [estimate.low, estimate.high],
        "paired_difference_memory_grown_mib": round(grown_mib, 1),
        "scipy_bootstrap_same_s": scipy_s,
        "scipy_bootstrap_interval": [float(theirs.low), float(theirs.high)],
        "mean_300_prompts_5_samples_s": timed(lambda: mean(five_samples, prompts))[0],
        "shares_805_prompts_s": timed(lambda: shares(preferences))[0],
        "bradley_terry_6_systems_805_prompts_s": timed(lambda: fit_bradley_terry(pairs))[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        "command": "python " + " ".join(sys.argv),
        "n_resamples": N_RESAMPLES,
        "best_of": REPEATS,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        **measure(),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
