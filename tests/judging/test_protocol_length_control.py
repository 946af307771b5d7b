from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.judging.base import Figures
from ragalign.judging.protocols.alpaca_eval import AlpacaEval2
from ragalign.judging.protocols.length_control import C_GRID, LengthControl, fit
from ragalign.judging.protocols.length_control_files import (
    load_length_control,
    read_difficulty,
    read_gamed,
    read_weights,
)
from ragalign.judging.replay import replay

MODELS = ["OpenHermes-2.5-Mistral-7B", "Qwen-14B-Chat", "NullModel", "FuseChat-Llama-3.2-1B-Instruct"]


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "alpaca_eval" / "v2"


def published(folder: Path, name: str, key: str) -> float:
    with (folder / "leaderboard.csv").open() as file:
        return float(next(row for row in csv.DictReader(file) if row[""] == name)[key])


def figures_of(path: Path, control: LengthControl | None) -> Figures:
    protocol = AlpacaEval2(length_control=control)
    (figures,) = protocol.aggregate(replay(protocol, [path]).verdicts)
    return figures


def from_weights(folder: Path) -> LengthControl | None:
    return load_length_control(
        weights=folder / "glm_weights.csv", difficulty=folder / "instruction_difficulty.recovered.csv"
    )


def refit(folder: Path, c: float | None = None) -> LengthControl | None:
    return load_length_control(
        difficulty=folder / "instruction_difficulty.recovered.csv",
        gamed=folder / "df_gamed.reconstructed.csv",
        c=c,
    )


@pytest.mark.parametrize("name", [name for name in MODELS if name != "NullModel"])
def test_published_weights_give_the_published_win_rate(folder: Path, name: str) -> None:
    values = figures_of(folder / name / "annotations.json", from_weights(folder)).values
    assert values["length_controlled_winrate"] == pytest.approx(
        published(folder, name, "length_controlled_winrate"), abs=1e-6
    )
    assert values["glm_name"] == "length_controlled_v1"


def test_published_standard_error(folder: Path) -> None:
    name = "FuseChat-Llama-3.2-1B-Instruct"
    values = figures_of(folder / name / "annotations.json", from_weights(folder)).values
    assert values["lc_standard_error"] == pytest.approx(published(folder, name, "lc_standard_error"), abs=1e-6)


def test_null_models_weights_and_win_rate_are_of_two_fits(folder: Path) -> None:
    """Its published weights are those of one C of the grid, its published win rate that of the next.

    Cross-validation finds both equally good (to 3e-7 in log loss), so that two runs could choose differently.
    """
    path, target = (
        folder / "NullModel" / "annotations.json",
        published(folder, "NullModel", "length_controlled_winrate"),
    )
    weights = read_weights(folder / "glm_weights.csv")["NullModel"]
    assert figures_of(path, from_weights(folder)).values["length_controlled_winrate"] == pytest.approx(
        86.3250, abs=1e-4
    )
    lower, upper = C_GRID[5], C_GRID[6]
    assert figures_of(path, refit(folder, lower)).values["length_controlled_winrate"] == pytest.approx(
        86.3250, abs=1e-3
    )
    assert figures_of(path, refit(folder, upper)).values["length_controlled_winrate"] == pytest.approx(target, abs=1e-3)
    assert weights.constant == pytest.approx(1.90579, abs=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_refit_gives_the_published_win_rate_at_a_suitable_c(folder: Path, name: str) -> None:
    c = C_GRID[5] if name.startswith(("OpenHermes", "FuseChat")) else C_GRID[6]
    values = figures_of(folder / name / "annotations.json", refit(folder, c)).values
    target = published(folder, name, "length_controlled_winrate")
    assert values["length_controlled_winrate"] == pytest.approx(target, abs=0.002)
    assert values["glm_c"] == c


@pytest.mark.parametrize("name", MODELS)
def test_cross_validation_chooses_one_of_the_suitable_cs(folder: Path, name: str) -> None:
    values = figures_of(folder / name / "annotations.json", refit(folder)).values
    assert values["glm_c"] in C_GRID[5:7]
    target = published(folder, name, "length_controlled_winrate")
    assert values["length_controlled_winrate"] == pytest.approx(target, abs=0.05)


def test_weights_are_found_by_the_folders_name(folder: Path) -> None:
    figures = figures_of(folder / "NullModel" / "annotations.json", from_weights(folder))
    assert figures.model == "example"  # what its file says
    assert figures.values["length_controlled_winrate"] is not None


def test_without_difficulties_the_leaderboards_name_stays_free(folder: Path) -> None:
    figures = figures_of(folder / "Qwen-14B-Chat" / "annotations.json", load_length_control())
    assert figures.values["length_controlled_winrate"] is None
    assert figures.values["length_controlled_winrate_minimal"] == pytest.approx(20.54, abs=0.01)
    assert "need instruction difficulties" in figures.notes[0]


def test_the_minimal_model_by_name_takes_upstreams_name(folder: Path) -> None:
    figures = figures_of(folder / "Qwen-14B-Chat" / "annotations.json", load_length_control("minimal"))
    assert figures.values["length_controlled_winrate"] == pytest.approx(20.54, abs=0.01)
    assert figures.values["glm_name"] == "length_controlled_minimal"
    assert not figures.notes


def custom_rows(n: int, seed: int = 0) -> list[dict[str, object]]:
    """A judge who prefers the longer answer, and a model that writes longer ones: at equal length it is even."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(n):
        extra = int(rng.normal(300, 400))
        wins = 1 / (1 + np.exp(-2.5 * np.tanh(extra / 400)))
        preference = 2.0 if rng.random() < wins else 1.0
        texts = {"output_1": "x" * 1500, "output_2": "y" * (1500 + extra)}
        names = {"generator_1": "base", "generator_2": "wordy", "annotator": "judge"}
        rows.append({"instruction": f"custom {number}", "dataset": "mine", "preference": preference, **texts, **names})
    return rows


def test_a_custom_set_needs_no_difficulties(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(custom_rows(400)))
    values = figures_of(path, load_length_control()).values
    assert values["win_rate"] > 65
    assert values["length_controlled_winrate"] == pytest.approx(50, abs=6)
    assert values["glm_name"] == "length_controlled_minimal"


@pytest.mark.parametrize("n", [1, 3])
def test_too_small_a_set_says_so(tmp_path: Path, n: int) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(custom_rows(n)))
    figures = figures_of(path, load_length_control())
    assert figures.values["length_controlled_winrate"] is None
    assert figures.notes[0].startswith("no length-controlled win rate: ")


def test_a_fit_recovers_known_weights() -> None:
    rng = np.random.default_rng(0)
    lengths, difficulty = rng.normal(size=4000) * 500, rng.normal(size=4000)
    logits = -1.2 * np.tanh(lengths / np.std(lengths, ddof=1)) + 0.8 * difficulty + 0.3
    weights, _ = fit(1 / (1 + np.exp(-logits)), lengths, difficulty, c=1e4)
    assert (weights.length, weights.difficulty, weights.constant) == pytest.approx((-1.2, 0.8, 0.3), abs=0.01)


def test_unscored_rows_are_left_out_of_the_fit() -> None:
    rng = np.random.default_rng(0)
    lengths, preferences = rng.normal(size=50), rng.random(50)
    preferences[::7] = np.nan
    weights, _ = fit(preferences, lengths, c=1.0)
    assert np.isfinite([weights.length, weights.constant]).all()


@pytest.mark.parametrize(
    ("lengths", "reason"), [(np.zeros(50), "same difference in length"), (np.arange(4.0), "too few")]
)
def test_impossible_fits_say_why(lengths: np.ndarray, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        fit(np.full(len(lengths), 0.5), lengths)


def test_more_rows_than_difficulties(folder: Path, tmp_path: Path) -> None:
    short = tmp_path / "difficulty.csv"
    short.write_text("index,instruction_difficulty\n0,0.5\n1,0.2\n")
    control = load_length_control(weights=folder / "glm_weights.csv", difficulty=short)
    figures = figures_of(folder / "Qwen-14B-Chat" / "annotations.json", control)
    assert "no instruction difficulty: the file has 2" in figures.notes[0]


def test_a_model_without_published_weights(folder: Path, tmp_path: Path) -> None:
    rows = json.loads((folder / "Qwen-14B-Chat" / "annotations.json").read_text())
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([{**row, "generator_2": "new"} for row in rows]))
    figures = figures_of(path, from_weights(folder))
    assert "no weights for the model new" in figures.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "w.csv"}, "difficulties"),
        ({"gamed": "g.csv"}, "difficulties"),
        ({"difficulty": "d.csv"}, "published weights or gamed rows"),
        ({"weights": "w.csv", "gamed": "g.csv", "difficulty": "d.csv"}, "not both"),
        ({"mode": "minimal", "weights": "w.csv"}, "takes no files"),
        ({"weights": "w.csv", "difficulty": "d.csv", "c": 1.0}, "C must be positive"),
        ({"c": -1.0}, "C must be positive"),
    ],
)
def test_files_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_length_control(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("reader", [read_weights, read_difficulty, read_gamed])
@pytest.mark.parametrize(("text", "message"), [("a,b\n1,2\n", "has no column"), (None, "cannot read")])
def test_damaged_files(tmp_path: Path, reader: object, text: str | None, message: str) -> None:
    path = tmp_path / "x.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        reader(path)  # type: ignore[operator]


def test_a_bad_number_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("index,instruction_difficulty\n0,1\n1,much\n")
    with pytest.raises(DataError, match="line 3: instruction_difficulty must be a number, not 'much'"):
        read_difficulty(path)
