"""JSON and TOML that are nested too deeply for a parser are errors like all others, wherever they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.command import Command

from ragalign._parsing import parse_json, parse_toml
from ragalign.errors import ConfigError, DataError
from ragalign.judging.pricing import PriceTable
from ragalign.judging.protocols.prompt_files import parse_fastchat
from ragalign.pool import Pool
from ragalign.recipes import Recipe
from ragalign.reuse.store import Store
from ragalign.templates import Template

DEEP = "[" * 100_000


def test_deep_nesting_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP)
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_toml(f"a = {DEEP}")
    assert parse_json(b"[1]") == [1]
    assert parse_toml("a = 1") == {"a": 1}


def _prompt(path: Path) -> object:
    return parse_fastchat(path.read_text(), str(path))


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("recipe.toml", f"a = {DEEP}", Recipe.load),
        ("template.toml", f"a = {DEEP}", Template.load),
        ("prices.toml", f"a = {DEEP}", PriceTable.load),
        ("prompt.jsonl", DEEP, _prompt),
        ("manifest.json", DEEP, lambda path: Store(path.parent)),
    ],
)
def test_files_nested_too_deeply_are_refused(
    tmp_path: Path, name: str, content: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises((ConfigError, DataError), match=f"{name}.*(nested too deeply|damaged)"):
        read(path)


def test_metadata_of_a_saved_row_nested_too_deeply(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(f"id,instruction,response,source,source_id,metadata\n0,q,a,s,,{DEEP}\n")
    with pytest.raises(DataError, match=r"p\.csv:2: the field 'metadata' is not valid JSON"):
        Pool.load(path)


@pytest.mark.parametrize("option", ["--option", "--where"])
def test_values_on_the_command_line(ragalign: Command, tmp_path: Path, option: str) -> None:
    run = ragalign("search", tmp_path / "no-index", "q", option, f"x={DEEP}")
    assert run.returncode in (1, 2)
    assert len(run.stderr.splitlines()) == 1
