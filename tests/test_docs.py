"""The documentation does not drift from the code."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import click
import pytest
import typer

from ragalign.bench.grid import Grid
from ragalign.recipes import Recipe
from ragalign.templates import Template

ROOT = Path(__file__).resolve().parent.parent
HOOKS = ROOT / "docs" / "hooks"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "benchmarks").rglob("*.md"),
        ROOT / "indexes/README.md",
    ]
)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    pytest.importorskip("griffe", reason="the extra docs is not installed")
    sys.path.insert(0, str(HOOKS))
    yield load(HOOKS / "generate.py")
    sys.path.remove(str(HOOKS))


@pytest.fixture(scope="module")
def site(generate: ModuleType) -> str:
    """All pages, with what is generated filled in."""
    return "\n".join(generate.filled(page.read_text(encoding="utf-8")) for page in PAGES)


def test_every_command_is_documented(generate: ModuleType, site: str) -> None:
    names = generate.command_names()
    assert "ragalign index add" in names
    assert [name for name in names if f"### {name}\n" not in site] == []
    assert not re.search("^Examples?:", generate.command_line(), re.MULTILINE), "examples are code"


def test_generated_parts_are_those_of_the_code(generate: ModuleType) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text == generate.refreshed(text), f"{page.name}: run `make docs`, and commit what it changes"


def test_every_recipe_key_is_documented(site: str) -> None:
    hints = get_type_hints(Recipe)
    for table in fields(Recipe):
        if is_dataclass(hints[table.name]):
            section = site.split(f"### `[{table.name}]`\n")[1].split("\n### ")[0]
            keys = [each.name for each in fields(hints[table.name])]
            assert keys
            assert [key for key in keys if f"| `{key}` |" not in section] == [], table.name


def test_every_retriever_option_is_described(generate: ModuleType) -> None:
    assert ": ?" not in generate.retrievers()


def test_docstrings_that_describe_several_names_are_split(generate: ModuleType) -> None:
    text = "Sum.\n\nArgs:\n    low, high: the ends,\n        both in nats.\n    n: how many.\n\nReturns, twice: no."
    expected = (
        "Sum.\n\nArgs:\n    low: the ends,\n        both in nats.\n    high: the ends,\n        both in nats.\n"
        "    n: how many.\n\nReturns, twice: no."
    )
    assert generate.split_groups(text) == expected


@pytest.mark.parametrize("page", [page for page in PAGES if "ragalign " in page.read_text(encoding="utf-8")], ids=name)
def test_commands_in_examples_exist(page: Path) -> None:
    from ragalign_cli.main import app

    top = typer.main.get_command(app)
    for words in commands(page):
        command: Any = top
        context = click.Context(top, info_name="ragalign")
        while words and hasattr(command, "get_command") and command.get_command(context, words[0]):
            command = command.get_command(context, words.pop(0))
            context = click.Context(command, info_name=words[0] if words else "", parent=context)
        assert command is not top, f"{page.name}: {words}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options = [word.partition("=")[0] for word in words if word.startswith("-") and word not in ("-", "--help")]
        assert [option for option in options if option not in known] == [], f"{page.name}: {command.name}"


def commands(page: Path) -> Iterator[list[str]]:
    """The `ragalign` commands in a page's shell examples and between backticks, as words without the first."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines += [found.replace("\n", " ") for found in re.findall(r"`(ragalign [a-z][^`]*)`", prose)]
    for line in lines:
        if line.startswith("ragalign ") and not re.match(r"ragalign [A-Z|]", line):
            yield shlex.split(line.partition("  #")[0].partition(" ... ")[0].replace("|", " "))[1:]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_in_examples_is_python(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ragalign":
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "```toml\n" in page.read_text(encoding="utf-8")], ids=name)
def test_toml_in_examples_is_read(page: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"^```toml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for number, block in enumerate(blocks):
        file = tmp_path / f"example{number}.toml"
        file.write_text(block, encoding="utf-8")
        keys = set(tomllib.loads(block))
        if "factors" in keys:
            Grid.load(file)
        elif "opening" in keys:
            Template.load(file)
        else:
            assert keys <= {each.name for each in fields(Recipe)}, page.name
            Recipe.load(file)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_resolve(page: Path) -> None:
    links = load(HOOKS / "links.py")
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in links.LINK.findall(text):
        path, _, anchor = target.partition("#")
        if links.is_relative(target):
            there = page.parent / path
            assert there.exists(), f"{page.name}: {target}"
            if anchor and there.suffix == ".md":
                assert anchor in anchors(there), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_quoted_messages_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^```text\n(.+?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert len(quoted) >= 20
    known = set(messages())
    assert [text for text in quoted if not any(text in message for message in known)] == []


def messages() -> Iterator[str]:
    """Every text of the code, with … for what is filled in."""
    for folder in ("src", "cli"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [each.value if isinstance(each, ast.Constant) else "…" for each in node.values]
                    yield "".join(map(str, parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_list_of_benchmarks_is_that_of_the_results() -> None:
    readme = load(ROOT / "benchmarks" / "readme.py")
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert page == readme.page(), "run `python benchmarks/readme.py`"


def test_paths_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [path for path in re.findall(r"`([\w./*-]+/[\w./*-]*)`", text) if not path.startswith("..")]
    assert len(paths) > 25
    missing = [path for path in paths if not any([*ROOT.glob(path), *(ROOT / "src/ragalign").glob(path)])]
    made = (ROOT / "Makefile").read_text(encoding="utf-8")  # such as build/site
    assert [path for path in missing if path not in made] == []


def test_every_room_is_in_contributing_and_the_api_pages() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(each["layers"] for each in contract["contracts"] if each["name"] == "layers")
    rooms = [room for room in re.findall(r"ragalign\.(\w+)", " ".join(layers)) if not room.startswith("_")]
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [room for room in rooms if not re.search(rf"`{room}(/|\.py)`", table)] == []
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    assert [room for room in rooms if not re.search(rf"^::: ragalign\.{room}\b", pages, re.MULTILINE)] == []


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    result = json.loads((ROOT / "benchmarks/results/bench_testbed.json").read_text(encoding="utf-8"))["bench"]
    scores = {one["name"]: one["quality"]["estimate"]["value"] for one in result["conditions"]}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {name: float(value) for name, value in re.findall(r"^\| `([\w-]+)` \|.*\| \**([\d.]+) %\** \|$", text, re.M)}
    assert set(rows) == {"zero-shot", "fixed", "random", "retrieved"}
    assert rows == {name: scores[name] for name in rows}


def test_what_builds_the_documentation_is_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = [re.match(r"[\w-]+", each) for each in extras["docs"]]
    pinned = (ROOT / "requirements-cpu.txt").read_text(encoding="utf-8")
    assert [found[0] for found in names if found and f"\n{found[0]}==" not in pinned] == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 150
    assert "pip install" in "\n".join(lines[:24])
