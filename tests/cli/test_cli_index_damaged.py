"""A damaged index gets one line from every command."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.command import Command
from fixtures.forged import manifest_of, replace, sign, zipped

FORGED: dict[str, Callable[[Path], None]] = {
    "a null encoder": lambda folder: sign(
        folder, manifest_of(folder) | {"encoder": manifest_of(folder)["encoder"] | {"id": None}}
    ),
    "search is a string": lambda folder: sign(folder, manifest_of(folder) | {"search": "nprobe"}),
    "a null in search": lambda folder: sign(folder, manifest_of(folder) | {"search": {"nprobe": None}}),
    "an empty vectors file": lambda folder: replace(folder, "vectors", b""),
    "a zip of vectors": lambda folder: replace(folder, "vectors", zipped()),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_every_command_says_it_in_one_line(
    ragalign: Command, starter_index: Path, tiny_model: Path, tmp_path: Path, forge: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(starter_index, tmp_path / "index"))
    forge(folder)
    more = tmp_path / "more.jsonl"
    more.write_text('{"instruction": "a", "response": "b"}\n')
    for command in (
        ("search", folder, "Why?"), ("pack", folder, "Why?", "--tokenizer", tiny_model), ("index", "verify", folder),
        ("index", "info", folder), ("index", "add", folder, "--pool", more), ("serve", folder, "--model", tiny_model),
    ):  # fmt: skip
        run = ragalign(*command)
        if command[:2] == ("index", "info") and run.returncode == 0:
            continue  # it looks at the manifest alone
        assert run.returncode == 1, (command, run.stdout, run.stderr)
        assert len(run.stderr.strip().splitlines()) == 1, (command, run.stderr)
        assert "damaged" in run.stderr
