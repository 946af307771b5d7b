"""Packing prompts from cached ids against tokenising the whole prompt again.

    python benchmarks/packing.py --pool ../shared/data/pools/lima_1k.jsonl \
        --queries ../shared/data/ica/queries.jsonl --tokenizer ../shared/data/tokenizers/llama-2 \
        --out benchmarks/results/packing.json

One core: the tokenizer's threads are switched off. "Packing" is all of `Packer.pack`: choosing, rendering and
tokenising the query, putting ids and text together, counting. "Retokenising" is the same tokenizer's fastest call on
the prompt's text, nothing else. Both take turns in one process, fifty prompts at a time. Where other work shares
the core, wall time holds its share too; time on the processor does not.
"""

from __future__ import annotations

import os

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

from machine import report

from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.pool.queries import read_queries
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, Hit, Prompt, Turn

N_DEMONSTRATIONS = 9
N_TOKENS = 3000
BLOCK = 50


class Timer:
    """Wall and processor time of calls."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    def __call__(self, work: Callable[[], object]) -> None:
        """Time one call."""
        processor, wall = time.process_time(), time.perf_counter()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def summary(self, unit_s: float, digits: int) -> dict[str, float]:
        """Median and quartiles of the wall time and the median processor time, in units of `unit_s` seconds."""
        lower, median, upper = statistics.quantiles(self.wall, n=4)
        values = {"lower_quartile": lower, "median": median, "upper_quartile": upper}
        values["median_processor"] = statistics.median(self.processor)
        return {name: round(value / unit_s, digits) for name, value in values.items()}


def as_hits(ids: list[str]) -> list[Hit]:
    return [Hit(id_, 1 - rank / len(ids), rank) for rank, id_ in enumerate(ids, 1)]


def nine_of_3000(packer: Packer, pool: Pool, n_prompts: int) -> list[list[Hit]]:
    """For each prompt, hits whose nine demonstrations take 2,900 to 3,000 tokens together."""
    chosen = random.Random(0)
    turns = [Turn("user", "")]
    lengths = {used.id: used.n_tokens for id_ in pool.ids for used in packer.pack(turns, as_hits([id_])).demonstrations}
    ids = list(lengths)
    found: list[list[Hit]] = []
    while len(found) < n_prompts:
        nine = chosen.sample(ids, N_DEMONSTRATIONS)
        if N_TOKENS - 100 <= sum(lengths[id_] for id_ in nine) <= N_TOKENS:
            found.append(as_hits(nine))
    return found


def single(packer: Packer, asked: list[list[Turn]], hits: list[list[Hit]], rounds: int) -> dict[str, object]:
    ours, theirs = Timer(), Timer()
    prompts: list[Prompt] = []
    for start in [*range(0, len(asked), BLOCK)] * rounds:
        pairs = list(zip(asked[start : start + BLOCK], hits[start : start + BLOCK], strict=True))
        packed = [packer.pack(turns, found) for turns, found in pairs]
        for turns, found in pairs:
            ours(partial(packer.pack, turns, found))
        for prompt in packed:
            theirs(partial(packer.tokenizer.encode, prompt.text))
        prompts += packed
    for prompt in prompts[: len(asked)]:
        assert prompt.token_ids == [*packer.tokenizer.prefix_ids, *packer.tokenizer.encode(prompt.text)]
    return {
        "n_prompts": len(prompts),
        "demonstrations_per_prompt": statistics.mean(len(prompt.demonstrations) for prompt in prompts),
        "tokens_per_prompt": round(statistics.mean(prompt.n_tokens for prompt in prompts), 1),
        "pack_us": ours.summary(1e-6, 1),
        "retokenise_us": theirs.summary(1e-6, 1),
        "times_faster": round(statistics.median(theirs.wall) / statistics.median(ours.wall), 1),
    }


def batch(packer: Packer, asked: list[list[Turn]], hits: list[list[Hit]], size: int, rounds: int) -> dict[str, object]:
    many = [asked[n % len(asked)] for n in range(size)]
    found = [hits[n % len(hits)] for n in range(size)]
    timer = Timer()
    for _ in range(rounds):
        timer(partial(packer.pack_many, many, found))
    return {"n_prompts": size, "seconds": timer.summary(1, 3)}


def long_context(tokenizer: Tokenizer, rounds: int) -> list[dict[str, object]]:
    """A budget of 100k tokens, filled with hundreds of demonstrations."""
    pool = Pool.from_demonstrations(
        Demonstration(f"What is known about the number {n}?", f"It is {n}, one more than {n - 1}. " * 16)
        for n in range(400)
    )
    packing = Packing(max_demonstrations=1000, max_tokens=100_000)
    packer = Packer(Template.load("ica"), tokenizer, pool, packing=packing, context_length=131_072)
    turns = [Turn("user", "What is known about the number 1,000?")]
    rows: list[dict[str, object]] = []
    for n in (50, 100, 200, 400):
        hits = as_hits(pool.ids[:n])
        prompt = packer.pack(turns, hits)
        ours, theirs = Timer(), Timer()
        for _ in range(rounds):
            ours(partial(packer.pack, turns, hits))
            theirs(partial(tokenizer.encode, prompt.text))
        rows.append(
            {
                "candidates": n,
                "demonstrations": len(prompt.demonstrations),
                "tokens": prompt.n_tokens,
                "pack_us": ours.summary(1e-6, 1),
                "retokenise_us": theirs.summary(1e-6, 1),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pool", type=Path, required=True)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    pool = Pool.load(options.pool)
    tokenizer = Tokenizer.load(options.tokenizer)
    packer = Packer(Template.load("ica"), tokenizer, pool)
    asked = [list(query.turns) for query in read_queries(options.queries)]
    hits = nine_of_3000(packer, pool, len(asked))
    result = {
        "command": "python " + " ".join(sys.argv),
        "cpus": os.cpu_count(),
        "cpus_used": 1,
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "tokenizers": version("tokenizers"),
        "one_prompt": single(packer, asked, hits, options.rounds),
        "batch": batch(packer, asked, hits, 10_000, options.rounds),
        "budget_of_100k_tokens": long_context(tokenizer, options.rounds * 4),
    }
    report(result, options.out)


if __name__ == "__main__":
    main()
