"""`ragalign select` from a pool to a recipe that `ragalign bench` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures.command import Command

METRIC = """
def river(record):
    return sum(int(one[:2], 16) for one in record["demonstrations"]) / 1000
"""


@pytest.fixture
def arguments(tmp_path: Path, tiny_model: Path) -> tuple[object, ...]:
    begin, pool, dev = (tmp_path / name for name in ("begin.jsonl", "pool.jsonl", "dev.jsonl"))
    begin.write_text('{"instruction": "Name a river.", "response": "The Nile."}\n')
    pool.write_text("".join(f'{{"instruction": "Name {n}.", "response": "Thing {n}."}}\n' for n in range(4)))
    dev.write_text("".join(f'{{"id": "q{n}", "instruction": "Say {n}."}}\n' for n in range(4)))
    (tmp_path / "begin.toml").write_text('[constants]\nfile = "begin.jsonl"\n[retriever]\nname = "none"\n')
    (tmp_path / "score.py").write_text(METRIC)
    return (
        "select", "--pool", pool, "--queries", dev, "--recipe", tmp_path / "begin.toml", "--model", tiny_model,
        "--backend", "transformers", "--max-new-tokens", "1", "--temperature", "0", "--add", "2",
        "--out", tmp_path / "found",
    )  # fmt: skip


@pytest.mark.slow
def test_it_writes_a_recipe_that_bench_takes(
    ragalign: Command, arguments: tuple[object, ...], tiny_model: Path, tmp_path: Path
) -> None:
    metric = ("--metric", f"{tmp_path / 'score.py'}:river")
    run = ragalign(*arguments, *metric)
    assert run.returncode == 0, run.stderr
    assert "optimism of the search" in run.stdout
    assert "recipe.toml" in run.stderr
    again = ragalign(*arguments, *metric, "--json")
    assert "starting the engine" not in again.stderr
    found = json.loads(again.stdout)
    assert len(found["constants"]) == 3
    assert found["optimism"] == pytest.approx(0)
    bench = ragalign(
        "bench", "--recipe", tmp_path / "begin.toml", "--recipe", tmp_path / "found" / "recipe.toml", "--queries",
        tmp_path / "dev.jsonl", "--model", tiny_model, "--backend", "transformers", *metric, "--out",
        tmp_path / "compared", "--json",
    )  # fmt: skip
    assert bench.returncode == 0, bench.stderr
    before, after = json.loads(bench.stdout)["bench"]["conditions"]
    assert after["quality"]["difference"]["value"] == pytest.approx(found["search_gain"]["value"])
    assert (before["costs"]["demonstrations"]["value"], after["costs"]["demonstrations"]["value"]) == (1, 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--metric", "beauty"), "no metric 'beauty'"),
        (("--metric", "exact-match", "--recipe", "ica"), "retrieves: start from a recipe"),
        (("--metric", "exact-match", "--add", "0"), "add must be at least 1"),
        (("--metric", "exact-match", "--held-out", "1"), "must be between 0 and 1"),
        (("--metric", "exact-match", "--queries", "nosuch"), "no prompt set 'nosuch'"),
        (("--metric", "exact-match"), "the metric 'exact_match' scored no answer: the prompt has no reference"),
    ],
)
def test_wrong_options_get_one_line(
    ragalign: Command, arguments: tuple[object, ...], more: tuple[str, ...], message: str
) -> None:
    run = ragalign(*arguments, *more)
    assert run.returncode in (1, 2)
    assert message in run.stderr
    assert "Traceback" not in run.stderr
