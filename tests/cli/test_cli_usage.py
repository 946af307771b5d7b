"""Wrong arguments: one line, exit code 2, whichever of Typer's checks finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from fixtures.command import Command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nosuch",), "no such command 'nosuch'; see `ragalign --help`"),
        (("index", "--nosuch"), "no such option: --nosuch"),
        (("index", "--pool"), "option '--pool' requires an argument"),
        (("index", "--pool", "x.jsonl", "--out", "y", "--metric", "cos"), "'--metric'"),
        (("index", "verify"), "missing argument 'DIR'; see `ragalign index verify --help`"),
        (("search", "x", "q", "-k", "0"), "'-k'"),
        (("search", "x", "q", "-k", "many"), "'-k'"),
        (("pack", "x", "q", "--tokenizer", "t", "--context-length", "-5"), "'--context-length'"),
        (("generate", "x", "--input", "q", "--output", "a"), "missing option '--model'"),
    ],
)
def test_wrong_arguments_get_one_line(ragalign: Command, arguments: tuple[str, ...], message: str) -> None:
    done = ragalign(*arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "--help`" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_and_version_succeed(ragalign: Command) -> None:
    for arguments in (("--help",), ("index", "-h"), ("--version",)):
        done = ragalign(*arguments)
        assert done.returncode == 0
        assert not done.stderr
        assert "ragalign" in done.stdout
    assert ragalign().returncode == 2


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_folder_without_a_tokenizer(ragalign: Command, tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    done = ragalign("pack", tmp_path, "q", "--recipe", "zero-shot", "--tokenizer", tmp_path / folder)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(tmp_path / folder) in done.stderr
    assert ("there is no such folder" if folder == "absent" else "the folder holds none") in done.stderr
