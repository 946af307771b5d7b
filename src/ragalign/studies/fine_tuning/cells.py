"""The cells of the comparison: one per method, number of demonstrations and seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ragalign.errors import ConfigError
from ragalign.pool import Pool

Method = Literal["zero-shot", "constant", "retrieved", "retrieved-pool", "lora", "full"]
METHODS: tuple[Method, ...] = get_args(Method)
"""No demonstrations; N demonstrations as constants, as many as fit; retrieved from the N; retrieved from the whole
pool; the N as training data of a low-rank adapter, or of all weights."""

TUNED: tuple[Method, ...] = ("lora", "full")
# These do not depend on the N demonstrations drawn.
ALONE: tuple[Method, ...] = ("zero-shot", "retrieved-pool")


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell; `n` and `seed` are None if they do not matter."""

    method: Method
    n: int | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The cell's name for files, such as ``lora-n30-seed1``."""
        return self.method if self.n is None else f"{self.method}-n{self.n}-seed{self.seed}"


def plan(methods: Sequence[str], sizes: Sequence[int], seeds: int, pool: Pool) -> list[Cell]:
    """All cells, in-context methods first, small sizes before large ones.

    Raises:
        ConfigError: a method is unknown, or a size exceeds the pool.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if not sizes or min(sizes) < 1:
        raise ConfigError("give sizes of at least 1, such as --size 3 --size 10")
    if max(sizes) > len(pool):
        raise ConfigError(f"the pool has {len(pool):,} demonstrations, fewer than the largest size, {max(sizes):,}")
    if seeds < 1:
        raise ConfigError(f"seeds must be at least 1, not {seeds}")
    cells = [Cell(method) for method in ALONE if method in methods]
    for kind in (("constant", "retrieved"), TUNED):
        for n in sorted(set(sizes)):
            cells += [
                Cell(method, n, seed)
                for seed in range(seeds)
                for method in METHODS
                if method in kind and method in methods
            ]
    return cells


def drawn(pool: Pool, cell: Cell) -> list[int]:
    """The pool positions of a cell's demonstrations; with the same seed, a smaller draw is a prefix of a larger one.

    Raises:
        ConfigError: the cell draws no demonstrations.
    """
    if cell.n is None or cell.seed is None:
        raise ConfigError(f"{cell.name} draws no demonstrations")
    order = random.Random(cell.seed).sample(range(len(pool)), len(pool))
    return order[: cell.n]
