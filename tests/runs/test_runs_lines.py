"""Files of a run that can be gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragalign.errors import ConfigError, DataError
from ragalign.runs.lines import append, claim, read_finished

# Answers may hold line ends that JSON does not escape.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c"), max_size=20)


@given(texts=st.lists(TEXTS, max_size=5), torn=st.binary(max_size=8).filter(lambda tail: b"\n" not in tail))
def test_rows_read_back_whatever_they_hold(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], torn: bytes
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    for text in texts:
        append(path, {"response": text})
    with path.open("ab") as file:
        file.write(torn)
    assert [row["response"] for row in read_finished(path)] == texts
    append(path, {"response": "next"})
    assert [row["response"] for row in read_finished(path)] == [*texts, "next"]


def test_settings_are_compared_in_depth(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.json"
    claim(path, {"model": "a", "decoding": {"temperature": 0.0}}, foreign="*")
    claim(path, {"model": "a", "decoding": {"temperature": 0.0}}, foreign="*")
    with pytest.raises(
        ConfigError, match=r"decoding\.temperature was 0\.0 and is 0\.5; seed was not there and is now\."
    ):
        claim(path, {"model": "a", "decoding": {"temperature": 0.5}, "seed": 1})
    path.write_text("[1]")
    with pytest.raises(DataError, match="is damaged"):
        claim(path, {})


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(DataError, match=r"but no run\.json"):
        claim(tmp_path / "run.json", {}, foreign="*")
    claim(tmp_path / "run.json", {}, foreign="conditions/*")
