"""The report's figures on recorded judgements, against plain NumPy and published tables."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragalign.comparisons.summary import Summary
from ragalign.reports.report import Comparison, Report
from ragalign.statistics import mean, paired_difference, sign_test

ICA_MODELS = ("llama2-13B_icl-oasstgpt", "llama2-13B_icl-random-oasstgpt", "llama2base-13B_zeroshot")
V1_MODELS = ("llama-2-13b-chat-hf", "text_davinci_001", "falcon-7b-instruct")


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def only(report: Report) -> Comparison:
    (comparison,) = report.comparisons
    return comparison


def model(comparison: Comparison, name: str) -> Summary:
    return next(one for one in comparison.models if one.name == name)


@pytest.fixture(scope="module")
def ica(shared_data: Path) -> Comparison:
    return only(Report.from_files([shared_data / f"ica/{name}_vs_davinci003_autoeval.jsonl" for name in ICA_MODELS]))


def ica_scores(shared_data: Path, name: str) -> np.ndarray:
    """Scores [prompts, samples, 2], read here from the first line of the judge's words."""
    lines = (shared_data / f"ica/{name}_vs_davinci003_autoeval.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["autoeval_text_list"] for line in lines]
    return np.array([[text.split("\n")[0].split(" ")[:2] for text in row] for row in texts], dtype=np.float64)


@pytest.mark.parametrize(
    ("name", "win", "draw", "lose"),
    [("llama2-13B_icl-oasstgpt", 1176, 73, 251), ("llama2base-13B_zeroshot", 171, 5, 1324)],
)
def test_ica_has_the_published_shares(ica: Comparison, name: str, win: int, draw: int, lose: int) -> None:
    found = model(ica, name)
    shares = found.outcomes["preference"]
    assert [round(1500 * one.value) for one in (shares.win, shares.tie, shares.lose)] == [win, draw, lose]
    assert (found.n, found.n_unscored, found.n_prompts) == (1500, 0, 300)
    assert found.figures.values["win_rate"] == pytest.approx(100 * win / 1500)
    assert shares.win.low < shares.win.value < shares.win.high


def test_ica_differences_are_those_of_plain_numpy(ica: Comparison, shared_data: Path) -> None:
    """Samples of a prompt have no partner, so each side's are averaged and prompts resampled."""
    preferences = {}
    for name in ICA_MODELS:
        scores = ica_scores(shared_data, name)
        preferences[name] = 50 + 50 * np.sign(scores[..., 0] - scores[..., 1])
    assert [one.name for one in ica.models] == sorted(preferences, key=lambda name: -preferences[name].mean())
    assert len(ica.differences) == 3
    for one in ica.differences:
        expected = preferences[one.first].mean(axis=1) - preferences[one.second].mean(axis=1)
        assert one.estimate.value == pytest.approx(expected.mean())
        oracle = paired_difference(preferences[one.first].mean(axis=1), preferences[one.second].mean(axis=1))
        assert (one.estimate.low, one.estimate.high) == pytest.approx((oracle.low, oracle.high))
        draws = np.random.default_rng(1).integers(0, 300, (4000, 300))
        low, high = np.quantile(expected[draws].mean(axis=1), [0.025, 0.975])
        assert (one.estimate.low, one.estimate.high) == pytest.approx((low, high), abs=0.35)
        assert one.test.p_value == sign_test(expected).p_value
        assert (one.n_prompts, one.estimate.n_prompts) == (300, 300)
        assert one.p_adjusted >= one.test.p_value


def test_ica_strengths_rank_the_systems_as_the_win_shares_do(ica: Comparison) -> None:
    assert ica.strengths is not None
    assert list(ica.strengths.strengths) == [
        "llama2-13B_icl-oasstgpt",
        "llama2-13B_icl-random-oasstgpt",
        "davinci003",
        "llama2base-13B_zeroshot",
    ]
    assert ica.strengths.strengths["davinci003"].value == 0
    win, tie, lose = ica.strengths.probabilities("llama2base-13B_zeroshot", "davinci003")
    assert win == pytest.approx(0.114, abs=0.03)
    assert win + tie + lose == pytest.approx(1)


def test_ica_always_shows_the_model_first_so_no_bias_is_claimed(ica: Comparison) -> None:
    assert all(one.position is None for one in ica.models)


def test_another_baseline_is_another_comparison(shared_data: Path) -> None:
    report = Report.from_files(sorted((shared_data / "ica").glob("*_autoeval.jsonl")))
    assert [(one.baseline, len(one.models)) for one in report.comparisons] == [("chatgpt", 1), ("davinci003", 3)]
    assert report.n == 4800
    (chatgpt,) = report.comparisons[0].models
    assert 100 * chatgpt.outcomes["preference"].win.value == pytest.approx(16.33, abs=0.005)


def annotations(shared_data: Path, version: str, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(
        (shared_data / f"alpaca_eval/{version}/{name}/annotations.json").read_text(encoding="utf-8")
    )
    # Upstream reads a stored 0 as a draw.
    return [row | {"preference": 1.5 if row["preference"] == 0 else row["preference"]} for row in rows]


def leaderboard(shared_data: Path, version: str) -> dict[str, dict[str, str]]:
    with (shared_data / f"alpaca_eval/{version}/leaderboard.csv").open(encoding="utf-8") as file:
        return {row[""]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def alpaca(shared_data: Path) -> Comparison:
    files = [shared_data / f"alpaca_eval/v1/{name}/annotations.json" for name in V1_MODELS]
    return only(Report.from_files(files))


def test_alpaca_eval_means_are_the_leaderboards(alpaca: Comparison, shared_data: Path) -> None:
    published = leaderboard(shared_data, "v1")
    for name in ("llama-2-13b-chat-hf", "text_davinci_001"):
        found = model(alpaca, name)
        assert found.means["preference"].value == pytest.approx(float(published[name]["win_rate"]), abs=1e-6)
        assert found.figures.values["standard_error"] == pytest.approx(
            float(published[name]["standard_error"]), abs=1e-6
        )
        # The bootstrap's spread is about the standard error, although nothing normal is assumed.
        spread = (found.means["preference"].high - found.means["preference"].low) / 2 / 1.96
        assert spread == pytest.approx(found.figures.values["standard_error"], rel=0.05)
        assert found.lengths["n_characters"].value == pytest.approx(float(published[name]["avg_length"]), abs=1)


def test_alpaca_eval_by_dataset_lengths_and_counts(alpaca: Comparison, shared_data: Path) -> None:
    rows = annotations(shared_data, "v1", "text_davinci_001")
    found = model(alpaca, "text_davinci_001")
    scored = [row for row in rows if row["preference"] is not None]
    assert (found.n, found.n_unscored) == (len(scored), len(rows) - len(scored))
    assert found.reasons == {"no preference is stored": 1}
    assert set(found.categories) == {row["dataset"] for row in rows}
    for dataset, estimate in found.categories.items():
        values = [100 * (row["preference"] - 1) for row in scored if row["dataset"] == dataset]
        assert (estimate.value, estimate.n) == (pytest.approx(np.mean(values)), len(values))
        oracle = mean(values)
        assert (estimate.low, estimate.high) == pytest.approx((oracle.low, oracle.high))
    words = [len(row["output_2"].split()) for row in rows]
    assert found.lengths["n_words"].value == pytest.approx(np.mean(words))
    assert found.lengths["n_baseline_characters"].value == pytest.approx(
        np.mean([len(row["output_1"]) for row in rows])
    )


def test_models_are_paired_by_the_prompts_text(shared_data: Path, tmp_path: Path) -> None:
    """Files in another order, or without some prompts, still compare answers to the same prompts."""
    first = annotations(shared_data, "v1", "llama-2-13b-chat-hf")
    second = annotations(shared_data, "v1", "text_davinci_001")
    known = {row["instruction"]: row["preference"] for row in first if row["preference"] is not None}
    random.Random(3).shuffle(second)
    del second[100:150]
    for name, rows in (("first", first), ("second", second)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (difference,) = only(Report.from_files([tmp_path / "first.json", tmp_path / "second.json"])).differences
    pairs = [
        100 * (known[row["instruction"]] - row["preference"])
        for row in second
        if row["preference"] is not None and row["instruction"] in known
    ]
    assert difference.n_prompts == len(second)
    assert difference.estimate.n == len(pairs)
    assert difference.estimate.value == pytest.approx(np.mean(pairs))


def test_position_bias_with_one_random_order_per_prompt(alpaca: Comparison, shared_data: Path) -> None:
    found = model(alpaca, "text_davinci_001").position
    assert found is not None
    assert found.consistency is None
    chose_first, shown_first = [], []
    for row in annotations(shared_data, "v1", "text_davinci_001"):
        if row["preference"] is None:
            continue
        coin = random.Random("is_switched_outputs" + row["instruction"] + "0").choices([False, True])[0]
        if coin:
            shown_first.append(100 * (row["preference"] - 1))
        if row["preference"] != 1.5:
            chose_first.append((row["preference"] == 2) == coin)
    assert found.first_position_rate.value == pytest.approx(100 * np.mean(chose_first))
    assert found.first_position_rate.n == len(chose_first)
    assert found.shown_first.value == pytest.approx(np.mean(shown_first))
    assert found.n_ties == 20


def test_alpaca_eval_2_keeps_the_length_controlled_figure(shared_data: Path) -> None:
    name = "OpenHermes-2.5-Mistral-7B"
    found = model(only(Report.from_files([shared_data / f"alpaca_eval/v2/{name}/annotations.json"])), name)
    values = [100 * (row["preference"] - 1) for row in annotations(shared_data, "v2", name)]
    assert found.means["preference"].value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.figures.values["length_controlled_winrate_minimal"] == pytest.approx(20.65, abs=0.1)


def test_mt_bench_scores_turns_and_categories(shared_data: Path) -> None:
    questions = shared_data / "mt_bench/question.jsonl"
    path = shared_data / "mt_bench/judgment_gpt-4_single_medusa.jsonl"
    comparison = only(Report.from_files([path], questions=questions))
    kinds = {row["question_id"]: row["category"] for row in map(json.loads, read_lines(questions))}
    rows = [json.loads(line) for line in read_lines(path)]
    assert {one.name for one in comparison.models} == {row["model"] for row in rows}
    for found in comparison.models:
        own = [row for row in rows if row["model"] == found.name]
        assert found.means["score"].value == pytest.approx(np.mean([row["score"] for row in own]))
        assert (found.n, found.n_prompts) == (160, 80)
        for turn in (1, 2):
            scores = [row["score"] for row in own if row["turn"] == turn]
            oracle = mean(scores)
            estimate = found.means[f"turn_{turn}"]
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx(
                (oracle.value, oracle.low, oracle.high)
            )
        by_kind = {kind: [r["score"] for r in own if kinds[r["question_id"]] == kind] for kind in set(kinds.values())}
        assert {kind: one.value for kind, one in found.categories.items()} == pytest.approx(
            {kind: np.mean(scores) for kind, scores in by_kind.items()}
        )


def test_just_eval_aspects_have_the_published_means(shared_data: Path) -> None:
    files = sorted((shared_data / "just_eval/gpt-3.5-turbo-0301").glob("*.json"))
    found = only(Report.from_files(files)).models[0]
    published = {
        "helpfulness": 4.6063,
        "clarity": 4.9075,
        "factuality": 4.5663,
        "depth": 3.4175,
        "engagement": 3.46,
        "safety": 4.875,
    }
    assert {name: round(found.means[name].value, 4) for name in published} == pytest.approx(published, abs=6e-5)
    assert found.means["aspects"].value == pytest.approx(np.mean(list(published.values())), abs=1e-4)
    assert found.means["aspects"].low < found.means["aspects"].value < found.means["aspects"].high
    assert {name: found.means[name].n for name in published} == dict.fromkeys(published, 800) | {"safety": 200}
    assert found.n == 1000


def test_just_eval_safety_of_three_models(shared_data: Path) -> None:
    comparison = only(Report.from_files(sorted((shared_data / "just_eval/safety").glob("*.json"))))
    assert [round(one.means["safety"].value, 3) for one in comparison.models] == [4.97, 4.915, 4.6]
    assert [one.metric for one in comparison.differences] == ["safety"] * 3


def test_the_json_document_holds_every_figure_with_interval_and_counts(alpaca: Comparison) -> None:
    document = json.loads(json.dumps(alpaca.to_dict(), allow_nan=False))
    assert {"protocol", "baseline", "judge", "models", "differences", "strengths"} <= set(document)

    def estimates(value: Any) -> list[dict[str, Any]]:
        if isinstance(value, dict):
            own = [value] if "low" in value else []
            return own + [one for part in value.values() for one in estimates(part)]
        return [one for part in value for one in estimates(part)] if isinstance(value, list) else []

    found = estimates(document)
    assert len(found) > 50
    for one in found:
        assert {"value", "low", "high", "n", "n_unscored", "n_prompts", "confidence", "method"} <= set(one)
        assert one["low"] <= one["value"] + 1e-9
        assert one["value"] <= one["high"] + 1e-9
    for one in document["models"]:
        assert {"model", "n", "n_unscored", "win_rate", "discrete_win_rate"} <= set(one)
