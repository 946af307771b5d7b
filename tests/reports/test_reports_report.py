"""Reports over our own verdicts: orders, samples, unscored answers, several judges, texts and odd files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.judged_data import MODELS, N_PROMPTS, completion_rows, pairwise_rows, verdict_row, write_lines, write_run
from hypothesis import given
from hypothesis import strategies as st

from ragalign.comparisons.completions import Completions
from ragalign.comparisons.distributions import distribution
from ragalign.comparisons.metrics import mean_of_means
from ragalign.comparisons.sources import read_sources
from ragalign.errors import ConfigError, DataError, IndexFormatError, RagalignError
from ragalign.indexes import Index
from ragalign.judging.output import read_verdicts
from ragalign.reports.report import Report
from ragalign.statistics import mean


def report_of(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Report:
    return Report.from_files([write_lines(tmp_path / "verdicts.jsonl", rows)], **options)


def test_both_orders_make_one_comparison_and_show_the_judges_bias(tmp_path: Path) -> None:
    rows = pairwise_rows()
    (comparison,) = report_of(tmp_path, rows).comparisons
    assert {one.name for one in comparison.models} == set(MODELS)
    for found in comparison.models:
        own = [row for row in rows if row["model"] == found.name]
        pairs = [
            (first["preference"], second["preference"])
            for first, second in zip(own[::2], own[1::2], strict=True)
            if first["preference"] is not None
        ]
        merged = np.mean(pairs, axis=1)
        assert (found.n, found.n_unscored, found.n_prompts) == (len(pairs), N_PROMPTS // 20, N_PROMPTS)
        assert found.means["preference"].value == pytest.approx(100 * merged.mean())
        assert found.outcomes["preference"].win.value == pytest.approx(np.mean(merged > 0.5))
        assert found.position is not None
        assert found.position.consistency is not None
        assert found.position.consistency.value == pytest.approx(100 * np.mean([a == b for a, b in pairs]))
        towards_first = [a for a, _ in pairs] + [1 - b for _, b in pairs]
        decided = [one for one in towards_first if one != 0.5]
        assert found.position.first_position_rate.value == pytest.approx(100 * np.mean(decided))
        assert found.position.n_ties == towards_first.count(0.5)
        assert sum(found.reasons.values()) == found.n_unscored


def test_verdicts_and_files_give_the_same_figures(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "verdicts.jsonl", pairwise_rows())
    from_files = Report.from_files([path]).to_dict()
    from_verdicts = Report.from_verdicts(read_verdicts(path)).to_dict()
    assert from_files == from_verdicts
    assert Report.from_files([tmp_path]).to_dict() == from_files


def test_models_answers_without_a_prompt_in_common_have_no_difference(tmp_path: Path) -> None:
    rows = [verdict_row(item_id=f"a{n}", model="one", baseline="base", preference=1.0, swapped=n > 1) for n in range(4)]
    rows += [verdict_row(item_id=f"b{n}", model="two", baseline="base", preference=0.0, swapped=True) for n in range(4)]
    (comparison,) = report_of(tmp_path, rows).comparisons
    assert comparison.differences == ()
    assert comparison.models[0].position is not None
    assert comparison.models[1].position is None


def test_nothing_scored_is_reported_as_such(tmp_path: Path) -> None:
    rows = [verdict_row(item_id=str(n), baseline="base", reason="no label", swapped=False) for n in range(3)]
    report = report_of(tmp_path, rows)
    assert (report.n, report.n_unscored) == (0, 3)
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["comparisons"][0]["models"][0]["reasons"] == {"no label": 3}


def test_one_model_unscored_beside_a_scored_one(tmp_path: Path) -> None:
    rows = [verdict_row(item_id=str(n), model="mute", baseline="base", reason="no label") for n in range(3)]
    rows += [verdict_row(item_id=str(n), model="heard", baseline="base", preference=1.0) for n in range(3)]
    (comparison,) = report_of(tmp_path, rows).comparisons
    assert [one.name for one in comparison.models] == ["heard", "mute"]
    assert math.isnan(comparison.models[1].means["preference"].value)
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_judges_stand_in_comparisons_of_their_own(tmp_path: Path) -> None:
    rows = [
        verdict_row(item_id=str(n), judge=judge, protocol="mt-bench", scores={"score": score})
        for judge, score in (("strict", 3.0), ("mild", 9.0))
        for n in range(4)
    ]
    comparisons = report_of(tmp_path, rows).comparisons
    assert [(one.judge, one.models[0].means["score"].value) for one in comparisons] == [("strict", 3.0), ("mild", 9.0)]


def test_two_runs_of_one_model_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder, preference in (("ica", 1.0), ("urial", 0.0)):
        (tmp_path / folder).mkdir()
        rows = [verdict_row(item_id=str(n), baseline="base", preference=preference) for n in range(5)]
        write_lines(tmp_path / folder / "verdicts.jsonl", rows)
    (comparison,) = Report.from_files([tmp_path / "ica", tmp_path / "urial"]).comparisons
    assert [one.name for one in comparison.models] == ["model (ica)", "model (urial)"]
    assert comparison.differences[0].estimate.value == 100


def test_systems_under_one_name_are_pointed_out(tmp_path: Path) -> None:
    rows = [verdict_row(item_id=str(n), baseline="b", preference=p) for p in (0.0, 1.0) for n in range(3)]
    report = report_of(tmp_path, rows)
    assert report.n == 6
    assert any("3 answers of 'model' have several verdicts" in note for note in report.notes)
    assert not any("several verdicts" in note for note in report_of(tmp_path, pairwise_rows()).notes)


def test_parts_of_one_run_make_one_line(tmp_path: Path) -> None:
    """JUST-EVAL judges safety in a run of its own, maybe with another judge."""
    modes = {
        "general": ("score_multi", "helpfulness", "a", range(5)),
        "safe": ("score_safety", "safety", "b", range(5, 8)),
    }
    for name, (mode, aspect, judge, ids) in modes.items():
        rows = [
            verdict_row(
                item_id=str(n),
                protocol="just-eval",
                judge=judge,
                scores={aspect: 4.0},
                metadata={"mode": mode, "n_words": 7},
            )
            for n in ids
        ]
        write_lines(tmp_path / f"{name}.jsonl", rows)
    (comparison,) = Report.from_files([tmp_path / "general.jsonl", tmp_path / "safe.jsonl"]).comparisons
    (found,) = comparison.models
    assert comparison.judge == "a, b"
    assert {name: one.n for name, one in found.means.items()} == {"aspects": 8, "helpfulness": 5, "safety": 3}
    assert found.lengths["n_words"].value == 7


def test_aspects_that_are_compared_have_shares_and_adjusted_p_values(tmp_path: Path) -> None:
    rows = [
        verdict_row(
            item_id=str(n),
            protocol="urial-pairwise",
            model=model,
            baseline="base",
            swapped=bool(n % 2),
            scores={"helpfulness": good if n else 0.5, "depth": 0.5},
        )
        for model, good in (("better", 1.0), ("worse", 0.0))
        for n in range(12)
    ]
    (comparison,) = report_of(tmp_path, rows).comparisons
    better = comparison.models[0]
    assert better.outcomes["helpfulness"].win.value == pytest.approx(11 / 12)
    assert better.outcomes["depth"].tie.value == 1
    assert better.means["aspects"].value == pytest.approx((100 * 11.5 / 12 + 50) / 2)
    assert better.position is not None
    found = {one.metric: one for one in comparison.differences}
    assert set(found) == {"aspects", "helpfulness", "depth"}
    assert found["helpfulness"].p_adjusted == pytest.approx(2 * found["helpfulness"].test.p_value)
    assert found["depth"].p_adjusted == 1


def test_completions_bring_texts_lengths_and_demonstrations(tmp_path: Path, starter_index: Path) -> None:
    verdicts, completions = write_run(tmp_path)
    ids = Index.open(starter_index).pool.ids[:2]
    write_lines(completions[0], completion_rows(MODELS[0], demonstrations=[*ids, "not-in-the-index"]))
    report = Report.from_files([verdicts], completions=completions, index=starter_index)
    assert report.demonstrations is not None
    assert set(report.demonstrations) == set(ids)
    assert any("1 of 3 retrieved demonstrations" in note for note in report.notes)
    (comparison,) = report.comparisons
    (first, *_) = comparison.verdicts[MODELS[0]].judged
    assert first.texts.turns[0].startswith("Question 0")
    assert first.texts.answer[0].startswith("retrieved answers 0")
    assert first.texts.baseline[0].startswith("baseline")
    assert first.texts.demonstrations == (*ids, "not-in-the-index")
    lengths = [len(row["response"].split()) for row in completion_rows(MODELS[0])]
    found = next(one for one in comparison.models if one.name == MODELS[0])
    assert found.lengths["n_words"].value == pytest.approx(np.mean(lengths))


def test_completions_of_nobody_are_named(tmp_path: Path) -> None:
    verdicts, _ = write_run(tmp_path)
    stray = write_lines(tmp_path / "stray.jsonl", completion_rows("stranger", 2))
    assert any("'stranger'" in note for note in Report.from_files([verdicts], completions=[stray]).notes)


def test_ica_answers_are_found_by_the_beginning_of_their_files_names(shared_data: Path) -> None:
    folder = shared_data / "ica"
    completions = [folder / "llama2-13B_icl-oasstgpt_outputs_temp0.7.jsonl", folder / "davinci003_results.jsonl"]
    report = Report.from_files(
        [folder / "llama2-13B_icl-oasstgpt_vs_davinci003_autoeval.jsonl"], completions=completions
    )
    assert report.notes == ()
    bare = Report.from_files([folder / "llama2-13B_icl-oasstgpt_vs_davinci003_autoeval.jsonl"])
    assert any("give them as completions" in note for note in bare.notes)
    rows = [json.loads(line) for line in completions[0].read_text(encoding="utf-8").splitlines()]
    for one in report.comparisons[0].verdicts["llama2-13B_icl-oasstgpt"].judged[::97]:
        row = rows[int(one.verdict.item_id)]
        assert one.texts.turns == (row["prompt"],)
        assert one.texts.answer == (row["response_list"][one.verdict.sample],)
        assert one.texts.baseline


def test_an_id_that_stands_for_another_prompt_is_not_believed(tmp_path: Path) -> None:
    """AlpacaEval's rows have no ids, so their positions count; the text decides where it is known."""
    row = {"output_1": "b", "generator_1": "base", "generator_2": "m", "output_2": "a", "preference": 2}
    rows = [row | {"instruction": text} for text in ("first", "second")]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    completions = [
        {"id": "0", "instruction": "second", "response": "a", "model": "m", "demonstrations": ["of-second"]},
        {"id": "1", "instruction": "first", "response": "a", "model": "m", "demonstrations": ["of-first"]},
    ]
    report = Report.from_files([path], completions=[write_lines(tmp_path / "c.jsonl", completions)])
    judged = report.comparisons[0].verdicts["m"].judged
    assert [one.texts.demonstrations for one in judged] == [("of-first",), ("of-second",)]


@pytest.mark.parametrize(
    ("pattern", "protocol"),
    [
        ("ica/*_autoeval.jsonl", "ica"),
        ("alpaca_eval/v1/*/annotations.json", "alpaca-eval-1"),
        ("alpaca_eval/v2/*/annotations.json", "alpaca-eval-2"),
        ("mt_bench/judgment_*.jsonl", "mt-bench"),
        ("just_eval/**/*-*.json", "just-eval"),
    ],
)
def test_recorded_files_tell_their_protocol(shared_data: Path, pattern: str, protocol: str) -> None:
    files = sorted(shared_data.glob(pattern))
    assert files
    found = read_sources(files[:3])
    assert {source.protocol for source in found} == {protocol}
    assert found == read_sources(files[:3], protocol=protocol)


def test_a_row_that_cannot_be_read_is_counted_and_told(tmp_path: Path) -> None:
    row = {"instruction": "q", "output_1": "b", "generator_1": "base", "generator_2": "m", "output_2": "a"}
    path = write_lines(tmp_path / "annotations.jsonl", [row | {"preference": 2}, {"broken": 1}])
    report = Report.from_files([path], protocol="alpaca-eval-1")
    assert (report.n, report.n_unscored, len(report.problems)) == (1, 1, 1)


def odd_rows() -> dict[str, list[Any]]:
    good = verdict_row(item_id="1", baseline="base", preference=1.0)
    return {
        "scores that are a list": [good | {"scores": [1]}],
        "a score that is a text": [good | {"scores": {"a": "1"}}],
        "a preference out of range": [good | {"preference": 1.5}],
        "a preference that is a text": [good | {"preference": "win"}],
        "an id that is a number": [good | {"item_id": 1}],
        "neither score nor reason": [good | {"preference": None}],
        "an unknown protocol": [good | {"protocol": "vibes"}],
        "metadata that is no object": [good | {"metadata": 3}],
        "a turn that is a text": [good | {"turn": "1"}],
        "usage of another form": [good | {"usage": {"tokens": 3}}],
        "something else": [{"hello": "world"}],
        "an array": [[1, 2]],
    }


@pytest.mark.parametrize("case", sorted(odd_rows()))
def test_odd_verdicts_are_refused_with_one_clear_line(tmp_path: Path, case: str) -> None:
    path = write_lines(tmp_path / "verdicts.jsonl", odd_rows()[case])
    with pytest.raises(RagalignError) as caught:
        Report.from_files([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bad_input(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "verdicts.jsonl", pairwise_rows(n=2))
    with pytest.raises(ConfigError, match="has verdicts of the protocol arena-hard, not ica"):
        Report.from_files([path], protocol="ica")
    with pytest.raises(ConfigError, match="unknown protocol"):
        Report.from_files([path], protocol="vibes")
    with pytest.raises(DataError, match="given twice"):
        Report.from_files([path, tmp_path])
    with pytest.raises(DataError, match="cannot be read"):
        Report.from_files([tmp_path / "missing.jsonl"])
    with pytest.raises(DataError, match="at least one verdict"):
        Report.from_verdicts([])
    with pytest.raises(IndexFormatError):
        Report.from_files([path], index=tmp_path / "no-index")


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 4)), min_size=1, max_size=30))
def test_the_mean_of_one_mean_is_that_mean(pairs: list[tuple[float, int]]) -> None:
    values: list[float | None] = [value for value, _ in pairs]
    prompts = [str(prompt) for _, prompt in pairs]
    one, oracle = mean_of_means([(values, prompts)]), mean(values, prompts)
    assert (one.value, one.low, one.high) == pytest.approx((oracle.value, oracle.low, oracle.high))
    assert (one.n, one.n_prompts) == (oracle.n, oracle.n_prompts)


def test_the_mean_of_means_weighs_parts_alike() -> None:
    parts: list[tuple[list[float | None], list[str]]] = [([1.0, 3.0, None], ["a", "b", "c"]), ([5.0], ["d"])]
    found = mean_of_means(parts)
    assert found.value == pytest.approx((2 + 5) / 2)
    assert (found.n, found.n_unscored, found.n_prompts) == (3, 1, 3)
    assert math.isnan(mean_of_means([([], [])]).value)


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.floats(0, 1e4), max_size=60), min_size=1, max_size=3),
    st.booleans(),
)
def test_every_value_is_in_one_bin(observed: dict[str, list[float]], has_tail: bool) -> None:
    found = distribution("x", "X", "points", observed, has_tail=has_tail)
    if found is None:
        assert not any(observed.values())
        return
    assert {name: sum(counts) for name, counts in found.counts.items()} == {k: len(v) for k, v in observed.items()}
    assert all(low < high for low, high in zip(found.edges, found.edges[1:], strict=False))
    inner = [value for values in observed.values() for value in values if value < found.edges[-1] or not found.is_open]
    assert all(found.edges[0] <= value <= found.edges[-1] + 1e-9 for value in inner)


def test_scores_are_counted_on_their_whole_scale() -> None:
    found = distribution("score", "Score", "points", {"m": [5.0, 9.5, 9.5]}, scale=(1.0, 10.0))
    assert found is not None
    assert found.values == tuple(np.arange(1, 10.5, 0.5))
    assert dict(zip(found.values, found.counts["m"], strict=True))[9.5] == 2


def test_models_names_that_begin_alike_are_not_mixed_up(tmp_path: Path) -> None:
    for name in ("llama", "llama-2", "llamas"):
        write_lines(tmp_path / f"{name}.jsonl", completion_rows(name, 1))
    loaded = Completions.load(sorted(tmp_path.glob("*.jsonl")))
    assert loaded.known("llama") == "llama"
    assert Completions.load([tmp_path / "llamas.jsonl"]).known("llama") is None
    assert Completions.load([tmp_path / "llama-2.jsonl"]).known("llama") == "llama-2"
