"""The workload of the planning benchmarks: real queries over a pool of real demonstrations.

Queries are the 300 of LIMA's test set, the first turns of MT-Bench and the instructions of AlpacaEval, stripped,
each once, without those that are in the pool. The pool is LIMA, a thousand GPT-4-written Alpaca answers and a thousand
long Alpaca answers (the wrapper before the instruction cut off), the first of each instruction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.encoders import Encoder
from ragalign.indexes import Index
from ragalign.packing import Packer, Packing
from ragalign.pool import Pool
from ragalign.retrieval import Exclusion, make_retriever
from ragalign.templates import Template
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, Hit

N_QUERIES, N_DEMONSTRATIONS = 1143, 2968
_HEADING = "### Instruction:"


@dataclass(frozen=True)
class Workload:
    """The input of a planner: queries, their candidates (best first), and the packer that makes the prompts."""

    queries: list[str]
    index: Index
    packer: Packer

    def candidates(self, n: int) -> list[list[Hit]]:
        """The `n` nearest demonstrations of each query, best first."""
        return make_retriever("dense", self.index).retrieve(self.queries, n, exclude=Exclusion())


def load_workload(data: Path, *, packing: Packing | None = None) -> Workload:
    """Workload W of the benchmark, from the folder of published data."""
    texts = [row["instruction"] for row in _lines(data / "ica/queries.jsonl")]
    texts += [row["turns"][0] for row in _lines(data / "mt_bench/question.jsonl")]
    texts += [row["instruction"] for row in _json(data / "alpaca_eval/v2/gpt4_1106_preview.model_outputs.json")]
    first: dict[str, Demonstration] = {}
    for demonstration in _demonstrations(data / "pools"):
        first.setdefault(demonstration.instruction.strip(), demonstration)
    queries = [text for text in dict.fromkeys(text.strip() for text in texts) if text not in first]
    pool = Pool.from_demonstrations(first.values())
    if (len(queries), len(pool)) != (N_QUERIES, N_DEMONSTRATIONS):
        raise SystemExit(f"{data}: {len(queries)} queries and {len(pool)} demonstrations; other data than the figures'")
    index = Index.build(pool, Encoder.load("sentence-transformers/all-MiniLM-L6-v2"))
    packer = Packer(Template.load("ica"), Tokenizer.load(data / "tokenizers/llama-2"), pool, packing=packing)
    return Workload(queries, index, packer)


def _demonstrations(pools: Path) -> Iterator[Demonstration]:
    yield from Pool.load(pools / "lima_1k.jsonl")
    for row in _json(pools / "alpaca_en_demo.json"):
        given = f"\n{row['input']}" if row["input"] else ""
        yield Demonstration(row["instruction"] + given, row["output"])
    for row in _json(pools / "refined_alpaca_1k_longest.json"):
        question, answer = (turn["value"] for turn in row["conversations"])
        yield Demonstration(question.partition(_HEADING)[2].strip(), answer)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
