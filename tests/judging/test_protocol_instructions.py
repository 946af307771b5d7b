"""IFEval and IFBench as protocols: figures from answers, as recorded runs have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("if_verifiable")

from ragalign.comparisons.intervals import intervals
from ragalign.comparisons.recorded import aggregate_files
from ragalign.errors import ConfigError, DataError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


COMMA, CASE, NO_COMMA = "No commas, please.", "In lower case.", "punctuation:no_comma"
PROMPTS = [
    {"key": 1, "prompt": COMMA, "instruction_id_list": [NO_COMMA, "startend:quotation"], "kwargs": [{}, {}]},
    {"key": 2, "prompt": CASE, "instruction_id_list": ["x:unknown", NO_COMMA], "kwargs": [{}, {}]},
    {"key": 3, "prompt": "Ignored.", "instruction_id_list": [NO_COMMA], "kwargs": [{}]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("protocol", "recorded", "expected"),
    [("ifeval", "ifeval_gpt4", (77.00, 83.54, 79.00, 85.13)), ("ifbench", "ifbench", (26.00, 26.32, 27.00, 28.95))],
)
def test_recorded_runs_come_out(protocol: str, recorded: str, expected: tuple[float, ...], shared_data: Path) -> None:
    folder = shared_data / "ifeval"
    [found] = aggregate_files(
        protocol, [folder / f"{recorded}.recorded.jsonl"], prompts=folder / f"{protocol}_prompts.jsonl"
    ).figures
    names = ("prompt_strict", "instruction_strict", "prompt_loose", "instruction_loose")
    assert tuple(round(found.values[name], 2) for name in names) == expected
    assert found.n_unscored == 0
    for name, estimate in intervals(found).items():
        assert estimate.low < found.values[name] < estimate.high
        assert estimate.n_prompts == found.n


def test_what_cannot_be_checked_is_counted_with_its_reason(tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    answers = write(
        tmp_path / "model.jsonl",
        [
            {"prompt": COMMA, "response": '"none"'},
            {"prompt": COMMA, "response": "a, b"},
            # As `ragalign generate` writes answers; one of its instructions has no checker.
            {"id": "x", "instruction": CASE, "response": "a, b"},
            {"prompt": "Asked by nobody.", "response": "?"},
            {"prompt": COMMA, "response": None},
        ],
    )
    recorded = aggregate_files("ifeval", [answers], prompts=prompts)
    [found] = recorded.figures
    assert (found.model, found.n, found.n_unscored) == ("model", 2, 3)
    assert found.values == {
        "prompt_strict": 50, "prompt_loose": 50, "instruction_strict": 40, "instruction_loose": 40,
    }  # fmt: skip
    assert "x:unknown: there is no checker of this name" in found.reasons
    assert [problem.reason for problem in recorded.problems] == [
        f"{prompts} has no such prompt: 'Asked by nobody.'",
        "no string field 'response'",
    ]
    assert found.notes == ("1 of 3 prompts have no answer",)
    # Two answers to one prompt are one cluster.
    estimates = intervals(found)
    assert estimates["instruction_strict"].n_prompts == 2
    assert estimates["prompt_strict"].n_prompts == 1


def test_prompts_and_protocol_belong_together(tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", PROMPTS)
    with pytest.raises(ConfigError, match="give --prompts FILE"):
        aggregate_files("ifeval", [prompts])
    with pytest.raises(ConfigError, match="apply to the protocols ifeval and ifbench only"):
        aggregate_files("ica", [prompts], prompts=prompts)
    broken = write(tmp_path / "broken.jsonl", [*PROMPTS, {"prompt": "a"}])
    with pytest.raises(DataError, match=r"broken\.jsonl line 4: no list of names 'instruction_id_list'"):
        aggregate_files("ifeval", [prompts], prompts=broken)
