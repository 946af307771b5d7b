"""Write the test and development worlds that ship with ragalign: their pools and their queries.

python benchmarks/testbed/write_data.py --out src/ragalign/data/testbed
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

import world


def draw_world(
    split: world.Split, n_topics: int, n_each: int, n_queries: int
) -> tuple[list[world.Pair], list[world.Pair]]:
    """A pool with `n_each` pairs about each topic, and `n_queries` about each that are not in the pool.

    Seeded by the name of the split. The instructions of pool and queries are all different.
    """
    rng = random.Random(f"ragalign testbed {split}")
    topics = sorted(rng.sample(range(len(world.TOPICS)), n_topics))
    styles = world.draw_styles(rng, topics, split)
    seen: set[str] = set()

    def draw(topic: int) -> world.Pair:
        while True:
            [pair] = world.draw_pairs(rng, styles, [topic], split)
            if pair.instruction not in seen:
                seen.add(pair.instruction)
                return pair

    pool = [draw(topic) for topic in topics for _ in range(n_each)]
    queries = [draw(topic) for topic in topics for _ in range(n_queries)]
    rng.shuffle(pool)
    rng.shuffle(queries)
    return pool, queries


def write(folder: Path) -> None:
    """Write pool.jsonl, queries.jsonl, dev_pool.jsonl and dev_queries.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: tuple[tuple[world.Split, str, int, int], ...] = (("test", "", 200, 1), ("dev", "dev_", 50, 2))
    for split, prefix, n_topics, n_queries in settings:
        pool, queries = draw_world(split, n_topics, 10, n_queries)
        _write_rows(folder / f"{prefix}pool.jsonl", f"{split}-", "response", pool)
        _write_rows(folder / f"{prefix}queries.jsonl", f"{split}-query-", "reference", queries)


def _write_rows(path: Path, prefix: str, answer: str, pairs: Iterable[world.Pair]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, pair in enumerate(pairs):
            row = {"id": f"{prefix}{number:04}", "instruction": pair.instruction, answer: pair.response}
            file.write(json.dumps({**row, "topic": pair.topic}, ensure_ascii=False) + "\n")


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the four files")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
