"""`ragalign bench` from prompts to the page, with a real model through transformers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.bench_metrics import METRICS
from fixtures.command import Command
from fixtures.judge_server import JudgeServer

DECODING = ("--backend", "transformers", "--max-new-tokens", "4", "--temperature", "0")
SMALL = "[packing]\nmax_demonstrations = 2\nmax_tokens = 1500\n"


def test_from_prompts_to_the_page(ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = ragalign(*bench_arguments, "--out", out, "--metric", "exact-match", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report == json.loads((out / "report.json").read_text())
    bench = report["bench"]
    assert [one["name"] for one in bench["conditions"]] == ["zero-shot", "fixed", "mine", "drawn"]
    assert (bench["baseline"], bench["fixed"]) == ("fixed", "fixed")
    by_name = {one["name"]: one for one in bench["conditions"]}
    shown = {name: one["costs"]["demonstrations"]["value"] for name, one in by_name.items()}
    assert shown == {"zero-shot": 0, "fixed": 1, "mine": 2, "drawn": 2}
    for one in bench["conditions"]:
        costs, quality = one["costs"], one["quality"]
        assert (costs["n"], costs["n_missing"], costs["n_leaked"]) == (3, 0, 0)
        assert costs["output_tokens"]["value"] <= 4
        assert sum(costs["ends"].values()) == pytest.approx(1)
        assert costs["requests_per_s"] > 0
        assert costs["price_ratio"] == pytest.approx(
            by_name["fixed"]["costs"]["requests_per_s"] / costs["requests_per_s"]
        )
        low, high = costs["price_spread"]
        assert low <= costs["price_ratio"] <= high
        assert 0 < costs["first_token_ms"]["p10"] <= costs["first_token_ms"]["median"] <= costs["first_token_ms"]["p90"]
        assert quality["estimate"]["n"] == 3
        assert (quality["difference"] is None) == (one["name"] == "fixed")
    assert by_name["fixed"]["costs"]["price_ratio"] == 1
    assert {key: bench["timing"][key] for key in ("base", "n_rounds", "n_prompts")} == {
        "base": "fixed", "n_rounds": 5, "n_prompts": 3,
    }  # fmt: skip
    assert bench["timing"]["control"]["ratio"] > 0
    # Tokens as the completions have them.
    for name, one in by_name.items():
        [path] = (out / "conditions").glob(f"{name}*/turn-1.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        mean = sum(row["n_prompt_tokens"] for row in rows) / 3
        assert one["costs"]["prompt_tokens"]["value"] == pytest.approx(mean)
    assert "<title>" in (out / "report.html").read_text()

    again = ragalign(*bench_arguments, "--out", out, "--metric", "exact-match")
    assert again.returncode == 0, again.stderr
    assert "all 12 answers exist: no engine is needed" in again.stderr
    assert "starting the engine" not in again.stderr
    assert "Exact match" in again.stdout
    assert "paired 95 % interval" in again.stdout
    assert json.loads((out / "report.json").read_text())["bench"] == bench

    page = ragalign("report", out / "judged" / "verdicts.jsonl", "--out", tmp_path / "page.html")
    assert page.returncode == 0, page.stderr


def test_without_a_judge_it_tells_cost_and_speed(
    ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = ragalign(*bench_arguments, "--out", out, "--first", "2")
    assert run.returncode == 0, run.stderr
    assert "Cost and speed, per request" in run.stdout
    assert "minus" not in run.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["comparisons"] == []
    assert all(one["quality"] is None for one in report["bench"]["conditions"])
    assert sum(report["bench"]["conditions"][2]["costs"]["most_used_demonstrations"].values()) == 4
    page = (out / "report.html").read_text()
    assert "Demonstrations used" in page
    assert "Lengths and ends" in page


def test_a_sweep_has_a_plot_per_factor(
    ragalign: Command,
    bench_prompts: Path,
    tiny_model: Path,
    short_index: Path,
    bench_recipes: list[str],
    tmp_path: Path,
) -> None:
    grid, out = tmp_path / "grid.toml", tmp_path / "out"
    grid.write_text(
        'recipe = "mine.toml"\ndesign = "one-at-a-time"\n[factors]\ndemonstrations = [2, 0, 1]\n'
        'order = ["most_similar_last", "random"]\nretriever = ["dense", "bm25"]\n'
    )
    chosen = ("--queries", bench_prompts, "--model", tiny_model, "--index", short_index, "--first", "2")
    run = ragalign("bench", "--sweep", grid, *chosen, *DECODING, "--out", out, "--metric", "exact-match", "--json")
    assert run.returncode == 0, run.stderr
    bench = json.loads(run.stdout)["bench"]
    assert len(bench["conditions"]) == 5
    factors = {one["factor"]: [level["level"] for level in one["levels"]] for one in bench["factors"]}
    assert factors == {
        "demonstrations": ["2", "0", "1"],
        "order": ["most similar last", "random"],
        "retriever": ["dense", "bm25"],
    }
    tokens = {level["level"]: level["prompt_tokens"] for level in bench["factors"][0]["levels"]}
    assert tokens["0"] < tokens["1"] < tokens["2"]
    page = (out / "report.html").read_text()
    assert page.count("<figcaption><b>") >= 3


def test_judged_by_a_model(ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with JudgeServer() as server:
        judged = ("--judge", f"judge@{server.base_url}", "--protocol", "ica", "--baseline", "zero-shot")
        run = ragalign(*bench_arguments, "--out", out, *judged, "--json")
        assert run.returncode == 0, run.stderr
        n_asked = len(server.log)
        assert n_asked == 3 * 3, "three recipes against the baseline"
        again = ragalign(*bench_arguments, "--out", out, *judged, "--json")
        assert len(server.log) == n_asked
    report = json.loads(run.stdout)
    assert json.loads(again.stdout)["bench"] == report["bench"]
    measured = {one["name"]: one["quality"] for one in report["bench"]["conditions"]}
    assert measured["zero-shot"] is None
    assert all(measured[name]["estimate"]["n"] == 3 for name in ("fixed", "mine", "drawn"))
    # Published figures for this protocol are shown, with their source.
    assert all(one["source"] for one in report["bench"]["published"])
    assert "Published by others" in ragalign(*bench_arguments, "--out", out, *judged).stdout


def test_a_pool_is_indexed_first(
    ragalign: Command, bench_recipes: list[str], bench_prompts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    pool, out = tmp_path / "pool.jsonl", tmp_path / "out"
    rows: list[dict[str, Any]] = [{"instruction": f"Tell me about {n}.", "response": f"It is {n}."} for n in range(6)]
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = bench_recipes[2]
    run = ragalign(
        "bench", "--recipe", mine, "--queries", bench_prompts, "--model", tiny_model, "--pool", pool, "--out", out,
        *DECODING, "--json",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert (out / "index" / "manifest.json").is_file()
    [measured] = json.loads(run.stdout)["bench"]["conditions"]
    # Three prompts stand in the pool, and none is its own demonstration.
    assert (measured["costs"]["n_leaked"], measured["costs"]["demonstrations"]["value"]) == (0, 2)


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("--recipe", "magic"), 2, "no recipe 'magic'"),
        (("--recipe", "ica", "--recipe", "ica"), 2, "two recipes are called 'ica'"),
        (("--queries", "magic"), 2, "no prompt set 'magic'"),
        (("--queries", "magic.jsonl"), 1, "magic.jsonl"),
        (("--metric", "beauty"), 2, "no metric 'beauty': use exact-match"),
        (("--metric", "nowhere.py:score"), 2, "there is no file nowhere.py with a metric"),
        (("--metric", "{score}:two"), 2, "score.py:two has the signature (response, reference); a metric takes one"),
        (("--metric", "{score}:later"), 2, "score.py:later is asynchronous"),
        (("--metric", "{score}:nosuch"), 2, "has no function 'nosuch'"),
        (("--metric", "exact-match", "--metric", "exact-match"), 2, "the metric exact-match is given twice"),
        (("--model", "./nowhere"), 2, "no model folder ./nowhere"),
        (("--backend", "magic"), 2, "no generator 'magic'"),
        (("--tensor-parallel", "2"), 2, "the transformers generator has no option 'tensor_parallel_size'"),
        (("--baseline", "magic"), 2, "no recipe of this run is called 'magic'"),
        (("--judge", "x", "--protocol", "magic"), 2, "magic"),
        (("--judge", "gpt-4.1"), 2, "judging needs both --judge and --protocol"),
        (("--judge", "x", "--protocol", "ica", "--metric", "exact-match"), 2, "give --metric or --judge, not both"),
        (("--pool", "q.jsonl"), 2, "give an index or a pool, not both"),
        (("--sweep", "nowhere.toml"), 2, "nowhere.toml"),
        (("--testbed",), 2, "--testbed sets everything but"),
        (("--temperature", "9"), 2, "temperature must be a number"),
        (("--first", "0"), 2, "'--first'"),
    ],
)
def test_wrong_options_get_one_line_and_no_folder(
    ragalign: Command,
    bench_arguments: tuple[object, ...],
    more: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "score.py").write_text(METRICS)
    more = tuple(one.format(score=tmp_path / "score.py") for one in more)
    run = ragalign(*bench_arguments, *more, "--out", tmp_path / "out")
    assert run.returncode == code
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_wrong_names_of_a_baseline_cost_nothing(
    ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path
) -> None:
    for option in ("--baseline", "--fixed"):
        run = ragalign(*bench_arguments, option, "magic", "--out", tmp_path / "out")
        assert run.returncode == 2
        assert "no recipe of this run is called 'magic'; choose one of zero-shot, fixed, mine, drawn" in run.stderr
        assert "starting the engine" not in run.stderr


def test_a_retrieving_recipe_wants_somewhere_to_retrieve_from(
    ragalign: Command, bench_prompts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    run = ragalign("bench", "--queries", bench_prompts, "--model", tiny_model, "--out", tmp_path / "out")
    assert run.returncode == 2
    assert "the recipe 'ica-random' retrieves demonstrations: give an index or a pool" in run.stderr
    assert "a benchmark needs --model and --queries" in ragalign("bench", "--out", tmp_path / "out").stderr


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_answered(ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps({"id": f"q{n}", "instruction": f"Tell me about {n}."}) + "\n" for n in range(64))
    )
    command = [*map(str, bench_arguments), "--queries", str(many), "--max-new-tokens", "32", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", "from ragalign_cli.main import main; main()", *command],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while sum(path.read_text().count("\n") for path in out.glob("conditions/*/turn-1.jsonl")) < 72:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "run the same command again to continue" in errors
    run = ragalign(*command, "--json")
    assert run.returncode == 0, run.stderr
    assert "answers exist" in run.stderr
    assert all(one["costs"]["n"] == 64 for one in json.loads(run.stdout)["bench"]["conditions"])
