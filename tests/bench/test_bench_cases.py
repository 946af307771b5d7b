"""Prompt sets: by name through `datasets`, in every published form, and from a user's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ragalign.bench import cases as module
from ragalign.bench.cases import PROMPT_SETS, load_cases
from ragalign.errors import ConfigError, DataError
from ragalign.measures.instructions import InstructionPrompt


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# One row as each set publishes it, and what it must become: (turns, references, category).
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[tuple[str, ...], ...], str | None]] = {
    "AlpacaEval": (
        {"instruction": "Name a river.", "output": "The Nile.", "generator": "davinci", "dataset": "helpful_base"},
        ("Name a river.",), (), "helpful_base",
    ),
    "MT-Bench of FastChat": (
        {"question_id": 81, "category": "math", "turns": ["1 + 1?", "And 2 + 2?"], "reference": ["2", "4"]},
        ("1 + 1?", "And 2 + 2?"), (("2",), ("4",)), "math",
    ),
    "MT-Bench on the hub": (
        {"prompt_id": 7, "category": "writing", "prompt": ["Write.", "Again."], "reference": []},
        ("Write.", "Again."), (), "writing",
    ),
    "JUST-EVAL": (
        {"id": 3, "instruction": "Explain.", "source_id": "lima-2", "dataset": "lima", "output": ""},
        ("Explain.",), (), "lima",
    ),
    "LIMA test": ({"conversations": ["Plan a trip."], "source": "authors"}, ("Plan a trip.",), (), None),
    "IFEval": (
        {"key": 1000, "prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"n": 1}]},
        ("No commas.",), (), None,
    ),
    "LIMA, several turns": ({"conversations": ["Hi.", "Hello!", "Bye."]}, ("Hi.", "Bye."), (), None),
    "one reference": ({"instruction": "2?", "reference": "two"}, ("2?",), (("two",),), None),
    "alternatives": ({"instruction": "2?", "reference": ["two", "II"]}, ("2?",), (("two", "II"),), None),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_is_understood(form: str, tmp_path: Path) -> None:
    row, turns, references, category = FORMS[form]
    [case] = load_cases(write(tmp_path / "q.jsonl", [row])).cases
    assert (case.turns, case.references, case.category) == (turns, references, category)
    own = row.get("question_id", row.get("prompt_id", row.get("id")))
    assert case.id == str(1 if own is None else own)


def test_a_second_turn_follows_the_first_answer(tmp_path: Path) -> None:
    [case] = load_cases(write(tmp_path / "q.jsonl", [{"turns": ["a?", "b?"]}])).cases
    turns = [(turn.role, turn.content) for turn in case.query_of(2, ["A."]).turns]
    assert turns == [("user", "a?"), ("assistant", "A."), ("user", "b?")]


def test_sets_by_name_come_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real `datasets` and the real hub cache, off the net: what is published lies where they look for it."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    hub = tmp_path / "hub"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(hub), raising=False)
    monkeypatch.chdir(tmp_path)
    files = {
        "tatsu-lab/alpaca_eval": ("alpaca_eval.json", json.dumps([FORMS["AlpacaEval"][0]])),
        "GAIR/lima": ("test.jsonl", json.dumps(FORMS["LIMA test"][0])),
    }
    for repository, (name, content) in files.items():
        folder = hub / f"datasets--{repository.replace('/', '--')}"
        (folder / "snapshots" / "c0ffee").mkdir(parents=True)
        (folder / "snapshots" / "c0ffee" / name).write_text(content)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("c0ffee")
    for repository, split, form in (
        ("HuggingFaceH4/mt_bench_prompts", "train", "MT-Bench on the hub"),
        ("re-align/just-eval-instruct", "test", "JUST-EVAL"),
        ("google/IFEval", "train", "IFEval"),
        ("allenai/IFBench_test", "train", "IFEval"),
    ):
        folder = tmp_path / repository
        folder.mkdir(parents=True)
        row = {key: value for key, value in FORMS[form][0].items() if value != []}
        write(folder / f"{split}.jsonl", [row])
    found = {name: load_cases(name) for name in PROMPT_SETS}
    assert {name: cases.cases[0].turns for name, cases in found.items()} == {
        "alpaca-eval": ("Name a river.",),
        "mt-bench": ("Write.", "Again."),
        "just-eval": ("Explain.",),
        "lima-test": ("Plan a trip.",),
        "ifeval": ("No commas.",),
        "ifbench": ("No commas.",),
    }
    [case] = found["ifeval"].cases
    assert case.id == "1000"
    assert case.query.metadata["instruction_id_list"] == ["punctuation:no_comma"]
    assert InstructionPrompt.from_row({"prompt": case.query.text, **case.query.metadata}).arguments == ({"n": 1},)
    assert found["mt-bench"].n_turns == 2
    assert [cases.name for cases in found.values()] == list(PROMPT_SETS)


def test_what_is_no_prompt_set_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no prompt set 'alpaca': use one of alpaca-eval, mt-bench"):
        load_cases("alpaca")
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        load_cases(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="no known field holds a question"):
        load_cases(write(tmp_path / "odd.jsonl", [{"text": "?"}]))
    with pytest.raises(DataError, match="'a' was already used"):
        load_cases(write(tmp_path / "twice.jsonl", [{"id": "a", "instruction": "x"}] * 2))
    with pytest.raises(ConfigError, match="at least one prompt"):
        load_cases(write(tmp_path / "one.jsonl", [{"instruction": "x"}])).first(0)


def test_the_fingerprint_sees_all_that_is_asked(tmp_path: Path) -> None:
    rows = [{"id": "a", "turns": ["x?", "y?"]}, {"id": "b", "instruction": "z?"}]
    known = load_cases(write(tmp_path / "q.jsonl", rows)).fingerprint
    assert load_cases(write(tmp_path / "same.jsonl", rows)).fingerprint == known
    for changed in (
        rows[::-1],
        rows[:1],
        [{**rows[0], "turns": ["x?", "Y?"]}, rows[1]],
        [rows[0], {**rows[1], "id": "c"}],
    ):
        assert load_cases(write(tmp_path / "q.jsonl", changed)).fingerprint != known


def test_every_name_has_its_place() -> None:
    assert set(module._PUBLISHED) == {"alpaca-eval", "mt-bench", "just-eval", "lima-test", "ifeval", "ifbench"}
