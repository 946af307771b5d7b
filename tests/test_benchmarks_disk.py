"""The benchmark of indexes on disk: what it samples, and sizes that are calculated against those of a real index."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.indexes import DiskIndex
from ragalign.pool import Pool
from ragalign.types import Demonstration

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_memory_that_is_freed_before_the_end_counts(benchmark: Any) -> None:
    with benchmark("disk_index").Anonymous() as memory:
        time.sleep(0.1)
        before = memory.gib
        held = np.ones(300 << 20, dtype=np.uint8)
        time.sleep(0.1)
        del held
        time.sleep(0.1)
    assert 0.25 < memory.gib - before < 0.35


def test_sizes_are_calculated_as_they_are(benchmark: Any, tmp_path: Path) -> None:
    scale = benchmark("scale")
    n = 4_000
    pool = Pool.from_demonstrations(Demonstration(f"Question {row}?", f"{row}.") for row in range(n))
    vectors = np.random.default_rng(0).standard_normal((n, scale.DIMENSION)).astype(np.float32)
    index = DiskIndex.build(tmp_path / "i", [(pool, vectors)])
    size = scale.Size(n)
    assert index.manifest.factory == size.factory
    for name, expected in size.bytes.items():
        assert (index.folder / name).stat().st_size == pytest.approx(expected, rel=0.01), name
    # The 1,080 vectors are (20 hits + 16 more) x 30 candidates.
    assert (scale.HITS + scale.SLACK) * scale.CANDIDATES == 1_080
