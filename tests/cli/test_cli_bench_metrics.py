"""The metrics of `ragalign bench`: functions of the user, and those that need no judge."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fixtures.bench_metrics import METRICS
from fixtures.command import Command, repeated
from fixtures.reward_model import build_reward_model

DECODING = ("--backend", "transformers", "--max-new-tokens", "4", "--temperature", "0")
NO_COMMA = "punctuation:no_comma"


def test_a_metric_of_ones_own(ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path) -> None:
    file, out = tmp_path / "score.py", tmp_path / "out"
    file.write_text(METRICS)
    run = ragalign(*bench_arguments, "--out", out, "--metric", f"{file}:words", "--json")
    assert run.returncode == 0, run.stderr
    for one in json.loads(run.stdout)["bench"]["conditions"]:
        [path] = (out / "conditions").glob(f"{one['name']}*/turn-1.jsonl")
        lengths = [len(json.loads(line)["response"].split()) for line in path.read_text().splitlines()]
        assert one["quality"]["estimate"]["value"] == pytest.approx(sum(lengths) / 3)
    # The answers are there, so each further metric costs nothing. What has no score is counted, with the reason.
    picky = ragalign(*bench_arguments, "--out", out, "--metric", f"{file}:picky", "--json")
    assert all(one["quality"]["estimate"]["n"] == 1 for one in json.loads(picky.stdout)["bench"]["conditions"])
    rows = [json.loads(line) for line in (out / "judged" / "verdicts.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rows} == {None, "the metric gave no score", "the metric failed: KeyError: 'q0'"}
    silent = ragalign(*bench_arguments, "--out", out, "--metric", f"{file}:silent")
    assert silent.returncode == 1
    assert "the metric 'silent' scored no answer; the first reason: the metric gave no score" in silent.stderr
    assert len(silent.stderr.splitlines()) == 2


def test_several_metrics_with_a_direction_each(
    ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path
) -> None:
    file, out = tmp_path / "score.py", tmp_path / "out"
    file.write_text(METRICS)
    names = repeated("--metric", [f"{file}:errors", f"{file}:words", f"{file}:picky"])
    run = ragalign(*bench_arguments, "--rounds", "0", "--out", out, *names, "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    bench = report["bench"]
    assert [(one["name"], one["lower_is_better"]) for one in bench["metrics"]] == [
        ("errors", True), ("words", False), ("picky", False),
    ]  # fmt: skip
    values = {
        name: {one["name"]: one["qualities"][name]["estimate"]["value"] for one in bench["conditions"]}
        for name in ("errors", "words", "picky")
    }
    assert values["errors"][bench["best"]["errors"]] == min(values["errors"].values())
    assert values["words"][bench["best"]["words"]] == max(values["words"].values())
    # What one metric cannot score, the others do.
    assert {one["qualities"]["picky"]["estimate"]["n"] for one in bench["conditions"]} == {1}
    assert {one["qualities"]["errors"]["estimate"]["n"] for one in bench["conditions"]} == {3}
    [comparison] = report["comparisons"]
    ranked = [one["name"] if "name" in one else one["model"] for one in comparison["models"]]
    assert [values["errors"][name] for name in ranked] == sorted(values["errors"].values())
    for one in comparison["differences"]:
        test, pair = one["sign_test"], (one["n_better"], one["n_worse"])
        signs = (test["n_positive"], test["n_negative"])
        assert pair == (signs[::-1] if one["metric"] == "errors" else signs)
    assert {one["metric"] for one in comparison["differences"]} == {"errors", "words", "picky"}
    # The direction is in the verdicts, so another report of them has it too.
    again = ragalign("report", out / "judged" / "verdicts.jsonl", "--json")
    [other] = json.loads(again.stdout)["comparisons"]
    assert other["metrics"] == comparison["metrics"]
    shown = ragalign(*bench_arguments, "--rounds", "0", "--out", out, *names).stdout
    assert "Errors (lower is better)" in shown
    assert f"{bench['best']['errors']} *" in shown


def test_reference_likelihood_and_similarity(
    ragalign: Command, bench_arguments: tuple[object, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    metrics = repeated("--metric", ["reference-likelihood", "answer-similarity"])
    command = (*bench_arguments, "--out", out, *metrics, "--rounds", "0", "--json")
    run = ragalign(*command)
    assert run.returncode == 0, run.stderr
    assert "likelihood of 3 references" in run.stderr
    bench = json.loads(run.stdout)["bench"]
    assert [one["name"] for one in bench["metrics"]] == ["nll", "nll_first32", "bits_per_token", "answer_similarity"]
    assert [one["lower_is_better"] for one in bench["metrics"]] == [True, True, True, False]
    assert bench["timing"] is None
    for one in bench["conditions"]:
        found = one["reference_likelihood"]
        assert (found["n"], found["n_unscored"]) == (3, 0)
        assert found["bits_per_token"] == pytest.approx(found["nll"] / math.log(2))
        assert found["nll"] == pytest.approx(found["nll_first32"]), "the references are short"
        low, high = found["intervals"]["nll"]
        assert 0 < low <= found["nll"] <= high
        assert (one["name"] == "fixed") == (not found["differences"])
        if found["differences"]:
            difference = found["differences"]["nll"]
            assert difference["low"] <= difference["value"] <= difference["high"]
        assert -1 <= one["qualities"]["answer_similarity"]["estimate"]["value"] <= 1
        shape = one["costs"]["shape"]
        assert 0 <= shape["stopped"]["value"] <= 100
        assert shape["length_ratio"]["value"] > 0
        # As its lines say.
        [path] = (out / "conditions").glob(f"{one['name']}*/likelihood.jsonl")
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert found["nll"] == pytest.approx(sum(row["nll"] for row in rows) / 3)
        assert {row["n_references"] for row in rows} == {2}
    again = ragalign(*command)
    assert again.returncode == 0, again.stderr
    assert "no engine is needed" in again.stderr
    assert json.loads(again.stdout)["bench"] == bench
    page = (out / "report.html").read_text()
    assert "NLL per token, nats" in page
    assert "repeated 4-grams" in page


def test_instructions_are_checked_and_a_reward_model_judges(
    ragalign: Command, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("if_verifiable")
    rows = [
        {"key": 7, "prompt": "No commas.", "instruction_id_list": [NO_COMMA], "kwargs": [{}]},
        {"key": 8, "prompt": "Unknown.", "instruction_id_list": ["x:y"], "kwargs": [{"n": None}]},
        {"key": 9, "prompt": "Two.", "instruction_id_list": [NO_COMMA, "startend:quotation"], "kwargs": [{}, {}]},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    command = ("bench", "--recipe", "zero-shot", "--queries", prompts, "--model", tiny_model, "--out", out, *DECODING)
    command = (*command, "--rounds", "0", "--json")
    run = ragalign(*command, "--metric", "ifeval")
    assert run.returncode == 0, run.stderr
    [condition] = json.loads(run.stdout)["bench"]["conditions"]
    names = ["prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose"]
    assert list(condition["qualities"]) == names
    estimate = condition["qualities"]["prompt_strict"]["estimate"]
    assert (estimate["n"], estimate["n_unscored"]) == (2, 1)
    assert estimate["value"] in (0, 50, 100)
    # Instructions are counted, and intervals resample prompts: the same figure as `judge aggregate` gives.
    estimate = condition["qualities"]["instruction_strict"]["estimate"]
    assert (estimate["n"], estimate["n_prompts"], estimate["n_unscored"]) == (3, 2, 1)
    [answers] = (out / "conditions").glob("*/turn-1.jsonl")
    aggregate = ragalign("judge", "aggregate", "--protocol", "ifeval", "--prompts", prompts, answers, "--json")
    assert aggregate.returncode == 0, aggregate.stderr
    assert json.loads(aggregate.stdout)["instruction_strict"] == pytest.approx(estimate["value"])
    assert json.loads(aggregate.stdout)["n_unscored"] == 1

    judged = ragalign(*command, "--judge", f"reward:{build_reward_model(tmp_path / 'reward', tiny_model)}")
    assert judged.returncode == 0, judged.stderr
    assert "no engine is needed" in judged.stderr
    [condition] = json.loads(judged.stdout)["bench"]["conditions"]
    assert condition["quality"]["estimate"]["n"] == 3
