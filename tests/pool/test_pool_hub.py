"""Dataset names through the real `datasets` library, from folders and from a hub that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ragalign.errors import DataError
from ragalign.pool.hub import looks_like_dataset, read_dataset
from ragalign.pool.readers import EXTENSIONS

ROWS = [{"instruction": f"q{i}", "output": f"a{i}", "tags": ["x", "y"]} for i in range(2500)]


@pytest.mark.parametrize(
    "text", ["squad", "GAIR/lima", "GAIR/lima:train", "tatsu-lab/alpaca:default:train", "a_b/c.d-e"]
)
def test_names_of_datasets(text: str) -> None:
    assert looks_like_dataset(text, EXTENSIONS)


@pytest.mark.parametrize(
    "text", ["pool.jsonl", "data/pool.JSON", "/data/lima", "./lima", "a/b/c", "a:b:c:d", "", "a b", "~/lima"]
)
def test_names_of_files(text: str) -> None:
    assert not looks_like_dataset(text, EXTENSIONS)


@pytest.fixture
def datasets_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose subfolders `datasets` loads by their names, with the hub switched off."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add_split(folder: Path, split: str, rows: list[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_dataset_gives_its_rows_in_order(datasets_folder: Path) -> None:
    add_split(datasets_folder / "demos", "train", ROWS)
    add_split(datasets_folder / "demos", "test", ROWS[:3])
    assert list(read_dataset("demos")) == list(enumerate(ROWS, 1))
    assert [row for _, row in read_dataset("demos:test")] == ROWS[:3]
    assert [row for _, row in read_dataset("demos:default:test")] == ROWS[:3]


def test_conversations_keep_their_form(datasets_folder: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": None}]
    add_split(datasets_folder / "demos", "train", rows)
    assert [row for _, row in read_dataset("demos")] == rows


def test_the_only_split_is_taken(datasets_folder: Path) -> None:
    add_split(datasets_folder / "demos", "validation", ROWS[:2])
    assert [row for _, row in read_dataset("demos")] == ROWS[:2]


def test_splits_and_configurations_that_are_not_there(datasets_folder: Path) -> None:
    add_split(datasets_folder / "demos", "validation", ROWS[:2])
    add_split(datasets_folder / "demos", "test", ROWS[:2])
    with pytest.raises(DataError, match=r"demos: the dataset has the splits .*; choose one, as in demos:"):
        read_dataset("demos")
    for name in ("demos:nosuch", "demos:nosuch:test"):
        with pytest.raises(DataError, match=rf"{name}: no such file, and no dataset .* could be loaded \(") as caught:
            read_dataset(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="nowhere/demos: no such file, and no dataset"):
        read_dataset("nowhere/demos")
    with pytest.raises(DataError, match="not a dataset name"):
        read_dataset("a:b:c:d")


def test_a_hub_that_cannot_be_reached_is_one_line_at_once() -> None:
    code = (
        "import sys; from ragalign.pool import Pool; from ragalign.errors import DataError\n"
        "try: Pool.load('tatsu-lab/alpaca')\n"
        "except DataError as error: print(error)"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout.startswith("tatsu-lab/alpaca: no such file, and the Hub cannot be reached")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
