"""Wrong arguments: one line, exit code 2, whichever of Typer's checks finds them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fixtures.command import Command

from ragalign_cli import main
from ragalign_cli.main import app


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
        (("generate", "x", "--queries", "q", "--out", "a"), "missing option '--model'"),
        (
            ("pool", "inspect", "x", "--on-error", "bad"),
            "invalid value for '--on-error': 'bad' is not one of 'strict', 'skip'",
        ),
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


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (("generate", "x", "--input", "q"), "--queries"),
        (("generate", "x", "--output", "a"), "--out"),
        (("generate", "x", "--quereis", "q"), "--queries"),
        (("generate", "x", "--ouput", "a"), "--out"),
        (("bench", "--prompts", "q"), "--queries"),
        (("bench", "--recipes", "ica"), "--recipe"),
        (("select", "--prompts", "q"), "--queries"),
        (("analyze", "shift", "--prompts", "q"), "--queries"),
        (("compare-ift", "--sizes", "3"), "--size"),
        (("compare-ift", "--methods", "lora"), "--method"),
        (("plan", "x", "--plot", "p.svg"), "--out"),
        (("report", "x", "--completions", "a"), "--answers"),
        (("judge", "aggregate", "x", "--questions", "q"), "--queries"),
        (("demo", "--queries", "8"), "--first"),
        (("bench", "--limit", "8"), "--first"),
        (("chat", "x", "--max-tokens", "8"), "--max-new-tokens"),
    ],
)
def test_an_old_or_misspelt_option_names_the_right_one(
    ragalign: Command, arguments: tuple[str, ...], right: str
) -> None:
    done = ragalign(*arguments)
    assert done.returncode == 2
    assert f"; did you mean {right}?; see `ragalign {arguments[0]}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "--pool", "a.jsonl", "b.jsonl", "--out", "y"),
        ("index", "--out", "y", "--pool", "a.jsonl", "b.jsonl"),
        ("bench", "--pool", "a.jsonl", "b.jsonl", "--out", "y"),
    ],
)
def test_several_values_after_one_option_are_told_how_to_be_given(
    ragalign: Command, arguments: tuple[str, ...]
) -> None:
    done = ragalign(*arguments)
    assert done.returncode == 2
    assert "repeat the option: --pool a.jsonl --pool b.jsonl" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_after_a_pool_is_the_folder(ragalign: Command, tmp_path: Path) -> None:
    done = ragalign("index", "add", "--pool", tmp_path / "more.jsonl", tmp_path / "mine")
    assert done.returncode == 1
    assert "more.jsonl" in done.stderr, "the folder was taken, and the pool read"


def _pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from _pages(command.get_command(None, name), (*path, name))


PAGES = list(_pages(typer.main.get_command(app)))


@pytest.mark.parametrize("path", PAGES, ids=" ".join)
def test_every_page_of_help_fits_a_terminal(ragalign: Command, path: tuple[str, ...]) -> None:
    done = ragalign(*path, "--help", columns=80)
    assert done.returncode == 0
    wide = [line for line in done.stdout.splitlines() if len(line) > 80]
    assert not wide
    assert "..." not in done.stdout.partition("Commands:")[2], "a summary is cut off"


def test_commands_come_in_panels_in_the_order_of_use(ragalign: Command) -> None:
    shown = ragalign("--help", columns=80).stdout
    panels = ["Build:", "Inspect:", "Answer:", "Serve:", "Evaluate:", "Study:"]
    assert sorted(panels, key=shown.index) == panels
    assert len([path for path in PAGES if len(path) == 1]) == sum(map(len, main.PANELS.values()))


def test_a_group_without_a_command_shows_its_help(ragalign: Command) -> None:
    done = ragalign("pool")
    assert done.returncode == 2
    assert "Usage: ragalign pool" in done.stderr
    assert "error" not in done.stderr


def test_help_imports_no_command_and_no_heavy_package() -> None:
    """Times vary under load, so what is counted is what costs them: modules beside those of Typer itself."""
    script = (
        "import sys, typer, contextlib, io\nbefore = set(sys.modules)\nfrom ragalign_cli.main import main\n"
        "sys.argv = ['ragalign', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main()\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not [name for name in loaded if name.partition(".")[0] in ("rich", "numpy", "pydantic", "httpx")]
    assert {name for name in loaded if name.startswith("ragalign")} == {
        "ragalign", "ragalign.errors", "ragalign_cli", "ragalign_cli.console", "ragalign_cli.help",
        "ragalign_cli.main", "ragalign_cli.usage",
    }  # fmt: skip
    assert len(loaded) < 40


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
    assert ("no model folder" if folder == "absent" else "the folder has none") in done.stderr
