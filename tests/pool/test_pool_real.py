"""Pools that others made, read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ragalign.pool import FileReport, Pool
from ragalign.text import normalise


@pytest.fixture(scope="module")
def pools(shared_data: Path) -> Path:
    return shared_data / "pools"


def test_lima(pools: Path) -> None:
    pool = Pool.load(pools / "lima_1k.jsonl")
    assert pool.report.files == (
        FileReport(str(pools / "lima_1k.jsonl"), n_rows=1000, n_loaded=1000, n_duplicates=0, shapes={"plain": 1000}),
    )
    assert pool[0].source == "lima_1k.jsonl"
    assert [demo.source_id for demo in pool] == [f"lima-{i}" for i in range(1000)]
    rows = [json.loads(line) for line in (pools / "lima_1k.jsonl").read_text().splitlines()]
    assert pool.instructions == [row["instruction"] for row in rows]
    assert pool.responses == [row["response"] for row in rows]


def test_lima_as_sharegpt_unwraps_to_the_plain_instructions(pools: Path) -> None:
    plain = Pool.load(pools / "lima_1k.jsonl")
    wrapped = Pool.load(pools / "lima_1k_sharegpt.json")
    pool = Pool.load(pools / "lima_1k_sharegpt.json", unwrap=True)
    assert all(text.startswith("Below is an instruction") for text in wrapped.instructions)
    assert pool.instructions == plain.instructions
    assert [text.strip() for text in pool.responses] == [text.strip() for text in plain.responses]
    (report,) = pool.report.files
    assert (report.n_rows, report.n_loaded, report.n_unwrapped, report.n_multi_turn) == (1000, 1000, 1000, 0)
    assert report.shapes == {"sharegpt": 1000}
    assert pool[0].metadata == {"score": 0.0}
    assert pool[0].source_id == "identity_0"


def test_alpaca(pools: Path) -> None:
    pool = Pool.load(pools / "alpaca_en_demo.json")
    (report,) = pool.report.files
    assert (report.n_rows, report.n_loaded, report.n_duplicates, report.shapes) == (1000, 986, 14, {"alpaca": 1000})
    rows = json.loads((pools / "alpaca_en_demo.json").read_text())
    joined = [row["instruction"] + ("\n" + row["input"] if row["input"] else "") for row in rows]
    assert len({(text, row["output"]) for text, row in zip(joined, rows, strict=True)}) == 986
    assert set(pool.instructions) == set(joined)


def test_refined_alpaca_unwraps_instructions_and_inputs(pools: Path) -> None:
    pool = Pool.load(pools / "refined_alpaca_1k_longest.json", unwrap=True)
    assert pool.report.files[0].n_unwrapped == len(pool) == 1000
    assert not any("###" in text or "Below is an instruction" in text for text in pool.instructions)
    values = [
        row["conversations"][0]["value"] for row in json.loads((pools / "refined_alpaca_1k_longest.json").read_text())
    ]
    assert sum("### Input:" in value for value in values) == 232
    for value, text in zip(values, pool.instructions, strict=True):
        parts = value.split("### Instruction:")[1].split("### Input:")
        assert "\n".join(part.strip() for part in parts) == text


def test_three_pools_deduplicated_by_instruction(pools: Path) -> None:
    """2,966 differ. It would be 2,968 if the unwrapped rows kept their "### Input:" header inside the instruction."""
    names = ("lima_1k.jsonl", "alpaca_en_demo.json", "refined_alpaca_1k_longest.json")
    pool = Pool.load([pools / name for name in names], unwrap=True)
    assert (pool.report.n_rows, len(pool)) == (3000, 2986)
    unique = pool.deduplicate()
    assert len(unique) == len({normalise(text) for text in pool.instructions}) == 2966

    values = [row["conversations"][0]["value"] for row in json.loads((pools / names[2]).read_text())]
    headed = [value.split("### Instruction:")[1].strip() for value in values]
    others = [demo.instruction for demo in pool if demo.source != names[2]]
    assert len({*others, *headed}) == 2968


def test_both_shapes_make_one_pool_that_survives_saving(pools: Path, tmp_path: Path) -> None:
    pool = Pool.load([pools / "lima_1k_sharegpt.json", pools / "alpaca_en_demo.json"], unwrap=True)
    assert [file.n_loaded for file in pool.report.files] == [1000, 986]
    for name in ("pool.parquet", "pool.jsonl"):
        pool.save(tmp_path / name)
        assert Pool.load(tmp_path / name) == pool
