"""`ragalign judge aggregate` and `agreement`, as a script and as a person meets them."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ragalign_cli.main import main


@dataclass(frozen=True)
class Run:
    returncode: int
    stdout: str
    stderr: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Runs `ragalign judge` in this process."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(*arguments: object) -> Run:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["ragalign", "judge", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Run(int(exit_.value.code or 0), out, err)

    return run


@pytest.mark.parametrize(
    ("protocol", "files", "n", "figures"),
    [
        (
            "ica",
            "ica/llama2-13B_icl-oasstgpt_vs_davinci003_autoeval.jsonl",
            1500,
            {"win": 1176, "draw": 73, "lose": 251, "win_rate": 78.4},
        ),
        (
            "ica",
            "ica/llama2base-13B_zeroshot_vs_davinci003_autoeval.jsonl",
            1500,
            {"win": 171, "draw": 5, "lose": 1324, "win_rate": 11.4},
        ),
        (
            "alpaca-eval-1",
            "alpaca_eval/v1/text_davinci_001/annotations.json",
            804,
            {"win_rate": 15.17412935323383, "standard_error": 1.235107892276849, "n_draws": 20},
        ),
        (
            "alpaca-eval-2",
            "alpaca_eval/v2/OpenHermes-2.5-Mistral-7B/annotations.json",
            805,
            {"win_rate": 10.340415705751553, "discrete_win_rate": 9.503105590062113},
        ),
        (
            "just-eval",
            "just_eval/gpt-3.5-turbo-0301/*.json",
            1000,
            {"helpfulness": 4.60625, "clarity": 4.9075, "factuality": 4.56625, "depth": 3.4175, "safety": 4.875},
        ),
    ],
)
def test_recorded_figures(
    shared_data: Path, judge: Callable[..., Run], protocol: str, files: str, n: int, figures: dict[str, float]
) -> None:
    run = judge("aggregate", "--protocol", protocol, *sorted(shared_data.glob(files)), "--json")
    (line,) = run.lines
    assert run.returncode == 0
    assert (line["protocol"], line["n"]) == (protocol, n)
    assert isinstance(line["model"], str)
    assert isinstance(line["n_unscored"], int)
    for name, value in figures.items():
        assert line[name] == pytest.approx(value, abs=1e-6), name


def test_every_mean_has_its_interval(shared_data: Path, judge: Callable[..., Run]) -> None:
    path = shared_data / "ica" / "llama2-13B_icl-oasstgpt_vs_davinci003_autoeval.jsonl"
    (line,) = judge("aggregate", "--protocol", "ica", path, "--json").lines
    interval = line["intervals"]["win_rate"]
    assert interval["low"] < interval["value"] == line["win_rate"] < interval["high"]
    assert (interval["n"], interval["n_prompts"], interval["n_unscored"]) == (1500, 300, 0)
    # Five samples of a prompt are not independent: the interval is wider than that of 1,500 prompts would be.
    assert interval["high"] - interval["low"] > 2 * 1.96 * 100 * (0.784 * 0.216 / 1500) ** 0.5


def test_mt_bench_with_categories(shared_data: Path, judge: Callable[..., Run]) -> None:
    folder = shared_data / "mt_bench"
    run = judge(
        "aggregate",
        "--protocol",
        "mt-bench",
        folder / "judgment_gpt-4_single_medusa.jsonl",
        "--queries",
        folder / "question.jsonl",
        "--json",
    )
    assert [line["overall"] for line in run.lines] == pytest.approx([5.9875, 6.103125, 5.878125])
    assert [line["turn_2"] for line in run.lines] == pytest.approx([5.18125, 5.475, 5.2375])
    assert all(len(line["categories"]) == 8 for line in run.lines)


def test_length_control_from_weights(shared_data: Path, judge: Callable[..., Run]) -> None:
    folder = shared_data / "alpaca_eval" / "v2"
    run = judge(
        "aggregate",
        "--protocol=alpaca-eval-2",
        *sorted(folder.glob("*/annotations.json")),
        f"--glm-weights={folder / 'glm_weights.csv'}",
        f"--instruction-difficulty={folder / 'instruction_difficulty.recovered.csv'}",
        "--json",
    )
    found = {line["model"]: line["length_controlled_winrate"] for line in run.lines}
    assert found["OpenHermes-2.5-Mistral-7B"] == pytest.approx(16.248577696674843, abs=1e-6)
    assert found["Qwen-14B-Chat"] == pytest.approx(12.378741790737235, abs=1e-6)
    assert found["FuseChat-Llama-3.2-1B-Instruct"] == pytest.approx(25.27098247880791, abs=1e-6)


def test_length_control_by_a_fit(shared_data: Path, judge: Callable[..., Run]) -> None:
    folder = shared_data / "alpaca_eval" / "v2"
    (line,) = judge(
        "aggregate",
        "--protocol=alpaca-eval-2",
        folder / "Qwen-14B-Chat" / "annotations.json",
        f"--df-gamed={folder / 'df_gamed.reconstructed.csv'}",
        f"--instruction-difficulty={folder / 'instruction_difficulty.recovered.csv'}",
        "--json",
    ).lines
    assert line["length_controlled_winrate"] == pytest.approx(12.378741790737235, abs=0.002)


def test_pairwise_files_of_mt_bench(tmp_path: Path, judge: Callable[..., Run]) -> None:
    row = {"question_id": 1, "model_1": "a", "model_2": "b", "judge": ["j", "pair-v2"], "turn": 1}
    path = tmp_path / "pair.jsonl"
    path.write_text(json.dumps({**row, "g1_judgment": "[[A]]", "g2_judgment": "[[B]]"}))
    run = judge("aggregate", "--protocol", "mt-bench", path, "--json")
    assert [(line["protocol"], line["mode"], line["model"], line["win"]) for line in run.lines] == [
        ("mt-bench", "pairwise", "a", 1),
        ("mt-bench", "pairwise", "b", 0),
    ]


def test_unreadable_rows_are_told_and_counted(tmp_path: Path, judge: Callable[..., Run]) -> None:
    path = tmp_path / "m_vs_b_autoeval.jsonl"
    path.write_text('{"autoeval_text_list": ["9 3"]}\nnot json\n{"autoeval_text_list": ["none"]}\n')
    run = judge("aggregate", "--protocol", "ica", path, "--json")
    (line,) = run.lines
    assert (run.returncode, line["n"], line["n_unscored"]) == (0, 1, 2)
    assert "line 2: not JSON: Expecting value; counted as unscored" in run.stderr


def test_nothing_scored_is_no_number(tmp_path: Path, judge: Callable[..., Run]) -> None:
    path = tmp_path / "m_vs_b_autoeval.jsonl"
    path.write_text('{"autoeval_text_list": ["?"]}\n')
    (line,) = judge("aggregate", "--protocol", "ica", path, "--json").lines
    assert (line["n"], line["n_unscored"], line["win_rate"]) == (0, 1, None)
    assert line["intervals"]["win_rate"]["value"] is None


def test_a_table_for_people(shared_data: Path, judge: Callable[..., Run]) -> None:
    path = shared_data / "just_eval" / "safety" / "gpt-4-0613.score_safety.chatgpt.json"
    run = judge("aggregate", "--protocol", "just-eval", path)
    assert "just_results_aligned//gpt-4-0613.json" in run.stdout
    assert "4.97" in run.stdout
    assert "no avg" in run.stderr


def test_agreement_of_files(shared_data: Path, judge: Callable[..., Run], tmp_path: Path) -> None:
    path = shared_data / "mt_bench" / "judgment_gpt-4_single_medusa.jsonl"
    other = tmp_path / "other.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    other.write_text("".join(json.dumps({**row, "judge": ["llama", row["judge"][1]]}) + "\n" for row in rows))
    run = judge("agreement", "--protocol", "mt-bench", path, other, "--json")
    (line,) = run.lines
    assert (line["raters"], line["n_units"]) == (["gpt-4", "llama"], 480)
    assert line["krippendorff_alpha"] == pytest.approx(1)
    assert line["pairs"][0]["cohen_kappa"] == pytest.approx(1)
    assert "gpt-4 / llama" in judge("agreement", "--protocol", "mt-bench", path, other).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["aggregate", "--protocol", "nope", "x"], 2, "unknown protocol 'nope'"),
        (["aggregate", "--protocol", "ica", "absent.jsonl"], 1, "absent.jsonl: cannot be read (No such file"),
        (["aggregate", "--protocol", "ica", "x", "--glm-c", "1"], 2, "length control applies to"),
        (["aggregate", "--protocol", "ica", "x", "--length-control", "minimal"], 2, "length control applies to"),
        (["aggregate", "--protocol", "alpaca-eval-2", "x", "--glm-weights", "w"], 2, "instruction difficulties"),
        (["aggregate", "--protocol", "just-eval", "x", "--queries", "absent"], 1, "absent: cannot be read"),
        (["agreement", "--protocol", "ica", "absent.jsonl"], 1, "absent.jsonl: cannot be read"),
    ],
)
def test_one_clear_line(judge: Callable[..., Run], arguments: list[str], code: int, message: str) -> None:
    run = judge(*arguments)
    assert run.returncode == code
    assert message in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert run.stdout == ""
