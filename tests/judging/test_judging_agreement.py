from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.judged import ask, make_item, reply
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import cohen_kappa_score

from ragalign.comparisons.agreement import agreement_of_files
from ragalign.errors import DataError
from ragalign.judging.agreement import PREFERENCE, agree, cohen_kappa, krippendorff_alpha, ratings
from ragalign.judging.labels import join, read_labels
from ragalign.judging.protocols.ica import Ica
from ragalign.judging.protocols.mt_bench import MtBench

# Krippendorff (2011), Computing Krippendorff's alpha-reliability: four observers, twelve units.
N = np.nan
WORKED_EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
)


def test_krippendorffs_worked_example() -> None:
    assert krippendorff_alpha(WORKED_EXAMPLE, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(WORKED_EXAMPLE, "interval") == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_two_raters_without_gaps_follows_its_definition() -> None:
    """Krippendorff's first example: two observers, ten binary units, alpha 0.095."""
    first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert krippendorff_alpha(np.array([first, second], dtype=float), "nominal") == pytest.approx(0.095, abs=5e-4)


tables = hnp.arrays(np.float64, (2, 30), elements=st.sampled_from([1.0, 2.0, 3.0, 4.0]))


@given(tables)
def test_nominal_kappa_is_scikit_learns(table: np.ndarray) -> None:
    found = cohen_kappa(table[0], table[1], "nominal")
    if found is None:
        assert len(np.unique(table)) == 1
    else:
        assert found == pytest.approx(cohen_kappa_score(table[0].astype(int), table[1].astype(int)))


@given(tables)
def test_quadratic_kappa_is_scikit_learns_on_a_scale_without_gaps(table: np.ndarray) -> None:
    found = cohen_kappa(table[0], table[1], "interval")
    if found is not None and len(np.unique(table)) > 1:
        first, second = table.astype(int)
        assert found == pytest.approx(cohen_kappa_score(first, second, labels=[1, 2, 3, 4], weights="quadratic"))


@given(tables)
def test_alpha_is_at_most_one_and_one_for_copies(table: np.ndarray) -> None:
    for level in ("nominal", "interval"):
        alpha = krippendorff_alpha(table, level)  # type: ignore[arg-type]
        assert alpha is None or alpha <= 1 + 1e-12
        copies = krippendorff_alpha(np.stack([table[0]] * 3), level)  # type: ignore[arg-type]
        assert copies is None or copies == pytest.approx(1)


def test_undefined_agreement_is_none() -> None:
    constant = np.ones((2, 5))
    assert krippendorff_alpha(constant, "nominal") is None
    assert cohen_kappa(constant[0], constant[1], "nominal") is None
    assert cohen_kappa(constant[0], constant[1], "interval") is None
    assert krippendorff_alpha(np.array([[1, N], [N, 2]]), "nominal") is None
    assert cohen_kappa(np.array([]), np.array([]), "nominal") is None


def test_units_that_only_one_rated_do_not_count() -> None:
    result = agree("score", {"a": {1: 3.0, 2: 4.0, 3: 5.0}, "b": {2: 4.0, 3: 1.0, 4: 2.0}}, "nominal")
    assert result.n_units == 2
    (pair,) = result.pairs
    assert (pair.n, pair.observed) == (2, 50)


def test_one_rater_is_too_few() -> None:
    with pytest.raises(DataError, match="at least two raters; found only a"):
        agree("score", {"a": {1: 1.0}}, "nominal")


def test_preferences_of_both_orders_are_one_rating() -> None:
    protocol = Ica(both_orders=True)
    first, second = protocol.build(make_item())
    verdicts = [protocol.parse(first, reply("9 6", "j")), protocol.parse(second, reply("9 6", "j"))]
    assert list(ratings(verdicts)[PREFERENCE]["j"].values()) == [0.5]


def write_single(path: Path, judge: str, scores: list[int | None]) -> Path:
    protocol = MtBench()
    judged = [
        ask(
            protocol,
            protocol.build(make_item(number, baseline=None))[0],
            reply(f"[[{score}]]" if score else "?", judge),
        )
        for number, score in enumerate(scores)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in protocol.record(judged)))
    return path


def test_two_judges_files(tmp_path: Path) -> None:
    first = write_single(tmp_path / "a.jsonl", "gpt-4", [8, 5, 9, None, 2])
    second = write_single(tmp_path / "b.jsonl", "llama", [7, 5, 9, 4, 3])
    result = agreement_of_files("mt-bench", [first, second])
    (one,) = result.agreements
    assert (one.rating, one.level, one.raters, one.n_units) == ("score", "interval", ("gpt-4", "llama"), 4)
    assert one.pairs[0].observed == 50
    assert one.pairs[0].kappa == pytest.approx(
        cohen_kappa_score([8, 5, 9, 2], [7, 5, 9, 3], labels=range(1, 11), weights="quadratic")
    )
    assert result.n_unscored == 1


def test_one_judge_twice_is_two_raters_by_file(tmp_path: Path) -> None:
    files = [write_single(tmp_path / f"{n}.jsonl", "gpt-4", [8, 5, 9 - n]) for n in range(2)]
    (one,) = agreement_of_files("mt-bench", files).agreements
    assert one.raters == tuple(str(file) for file in files)


def test_human_labels_of_comparisons(tmp_path: Path) -> None:
    protocol = Ica()
    scripted = ["9 2", "3 8", "5 5", "7 6"]
    judged = [ask(protocol, protocol.build(make_item(i))[0], reply(text)) for i, text in enumerate(scripted)]
    verdicts = tmp_path / "m_vs_b_autoeval.jsonl"
    verdicts.write_text("".join(json.dumps(row) + "\n" for row in protocol.record(judged)))
    labels = tmp_path / "labels.csv"
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "label", "rater"])
        writer.writerows(
            [[0, "win", "ann"], [1, "win", "ann"], [2, "tie", "ann"], [3, "win", "bob"], [9, "lose", "ann"]]
        )
    result = agreement_of_files("ica", [verdicts], human=labels)
    (one,) = result.agreements
    assert (one.rating, one.level) == (PREFERENCE, "nominal")
    assert {(pair.first, pair.second): pair.n for pair in one.pairs} == {
        ("judge", "ann"): 3,
        ("judge", "bob"): 1,
        ("ann", "bob"): 0,
    }
    assert one.pairs[0].observed == pytest.approx(200 / 3)
    assert result.n_unmatched == 1


def test_fastchats_human_judgements_fit_in_either_order(tmp_path: Path) -> None:
    path = tmp_path / "human.jsonl"
    rows = [
        {"question_id": 0, "model_a": "model", "model_b": "base", "winner": "model_a", "judge": "expert_1", "turn": 1},
        {"question_id": 1, "model_a": "base", "model_b": "model", "winner": "model_a", "judge": "expert_1", "turn": 1},
        {
            "question_id": 2,
            "model_a": "base",
            "model_b": "model",
            "winner": "tie (inconsistent)",
            "judge": ["expert_2"],
        },
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    protocol = Ica()
    verdicts = [protocol.parse(protocol.build(make_item(i))[0], reply("9 2")) for i in range(3)]
    joined, n_unmatched = join(read_labels(path), verdicts)
    assert n_unmatched == 0
    assert list(joined[PREFERENCE]["expert_1"].values()) == [1.0, 0.0]
    assert list(joined[PREFERENCE]["expert_2"].values()) == [0.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "win"}, "needs 'item_id'"),
        ({"item_id": 1}, "needs 'label' or 'winner'"),
        ({"item_id": 1, "label": "good"}, "neither win, tie, lose nor a score"),
        ({"item_id": 1, "label": "win", "turn": "x"}, "'turn' must be an integer"),
        ({"item_id": 1, "winner": "model_c", "model_a": "x", "model_b": "y"}, "'winner' must be"),
    ],
)
def test_bad_labels_have_their_line(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match=f"labels.jsonl line 1: .*{message}"):
        read_labels(path)


def test_labels_must_name_the_model_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"item_id": "0", "label": 7}))
    protocol = MtBench()
    verdict = protocol.parse(protocol.build(make_item(baseline=None))[0], reply("[[5]]"))
    joined, n_unmatched = join(read_labels(path), [verdict])
    assert (list(joined["score"]["human"].values()), n_unmatched) == ([7.0], 0)
    with pytest.raises(DataError, match="must name the model: the verdicts are about 2 models"):
        join(read_labels(path), [verdict, replace(verdict, model="other")])
