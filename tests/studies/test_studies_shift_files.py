"""Answers and readings on disk: those of another question or another recipe of the same name are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragalign.errors import ConfigError, DataError
from ragalign.generation.distributions import Distributions
from ragalign.runs import RunFolder
from ragalign.studies.shift.files import ShiftFiles
from ragalign.studies.shift.record import AlignedAnswer, Reading
from ragalign.types import Query, Turn

ANSWER = AlignedAnswer("q", "Why?", "Why?\n", (1, 2), (3,), ("So",), ("word",), (-0.5,))
QUERY = Query("q", (Turn("user", "Why?"),))


def files(folder: Path) -> ShiftFiles:
    recipe = folder.parent / "mine.toml"
    if not recipe.exists():
        recipe.write_text('[retriever]\nname = "none"\n')
    return ShiftFiles(RunFolder(folder), {"same": "", "mine": str(recipe)}, None)


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    kept = files(tmp_path / "run")
    assert kept.answers([QUERY]) == {}
    kept.add_answer(ANSWER, QUERY)
    kept.add_reading("mine", Reading("q", 2, 0, ()).to_dict())
    again = files(tmp_path / "run")
    assert again.answers([QUERY]) == {"q": ANSWER}
    assert [Reading.from_dict(row) for row in again.readings("mine")] == [Reading("q", 2, 0, ())]
    assert again.readings("same") == []


@pytest.mark.parametrize(
    "turns",
    [(Turn("user", "Why not?"),), (Turn("user", "Hi."), Turn("assistant", "Hi."), Turn("user", "Why?"))],
)
def test_another_question_under_the_same_id_is_refused(tmp_path: Path, turns: tuple[Turn, ...]) -> None:
    files(tmp_path / "run").add_answer(ANSWER, QUERY)
    with pytest.raises(DataError, match=r"answers\.jsonl, line 1: the query 'q' was asked as 'Why.'"):
        files(tmp_path / "run").answers([Query("q", turns)])


def test_an_edited_recipe_of_the_same_name_is_refused(tmp_path: Path) -> None:
    files(tmp_path / "run").add_reading("mine", {"id": "q", "error": "too long"})
    (tmp_path / "mine.toml").write_text('[retriever]\nname = "none"\n[decoding]\ntemperature = 1.0\n')
    with pytest.raises(ConfigError, match=r"context-mine\.jsonl, line 1: made with another recipe 'mine'"):
        files(tmp_path / "run").readings("mine")


def test_distributions_of_ids_that_end_alike_stay_apart(tmp_path: Path) -> None:
    kept = files(tmp_path / "run")
    (tmp_path / "run").mkdir()
    ids = [f"{first}{'x' * 80}" for first in "ab"]
    for number, id_ in enumerate(ids):
        whole, real = np.full(1, number, np.int32), np.full(1, number, np.float32)
        kept.save_distributions(id_, Distributions(whole, real, whole, whole[:, None], real[:, None]))
    assert [float(kept.load_distributions(id_).logprobs[0]) for id_ in ids] == [0.0, 1.0]
    assert all(map(kept.has_distributions, ids))
    kept.clear_distributions()
    assert not any(map(kept.has_distributions, ids))
