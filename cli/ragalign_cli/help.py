"""Help output: commands and options in panels, in plain text for 80 columns; commands are imported on demand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

OPTIONS = "Options"

# Placeholders for the values of options without a metavar of their own.
_PLACEHOLDERS = {"str": "TEXT", "path": "PATH", "int": "N", "float": "X"}
_TYPE = re.compile(r"<(str|path|int|float)>")


class Entry(NamedTuple):
    """A command that is imported on demand.

    Attributes:
        name: the command's name.
        target: ``module:attribute`` of a function or a `typer.Typer`.
        summary: the line in the list of commands.
    """

    name: str
    target: str
    summary: str


class Command(TyperCommand):
    """A command whose options are listed by their `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, one list per panel."""
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(TyperGroup):
    """A group that lists its options by panel and its commands in the order of their definition."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write options by panel, then the commands."""
        _write_options(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)


class LazyGroup(Group):
    """A group that imports its commands on demand; `panels` lists them under headings."""

    panels: ClassVar[Mapping[str, Sequence[Entry]]]

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, in the order of the panels."""
        return [entry.name for entries in self.panels.values() for entry in entries]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import and return a command; None if there is no command of this name."""
        if cmd_name not in self.commands:
            entry = next(
                (candidate for entries in self.panels.values() for candidate in entries if candidate.name == cmd_name),
                None,
            )
            if entry is None:
                return None
            self.commands[cmd_name] = _load(entry)
        return self.commands[cmd_name]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels of commands, without importing them, then the options."""
        width = max(len(entry.name) for entries in self.panels.values() for entry in entries)
        for title, entries in self.panels.items():
            with formatter.section(_heading(title)):
                formatter.write_dl([(f"{entry.name:<{width}}", entry.summary) for entry in entries])
        _write_options(self.get_params(ctx), ctx, formatter)


def group(help_text: str | None = None) -> typer.Typer:
    """An empty group; define its commands with ``cls=Command``. Without arguments it shows its help."""
    return typer.Typer(
        cls=Group, help=help_text, no_args_is_help=help_text is not None, add_completion=False, rich_markup_mode=None
    )


def _load(entry: Entry) -> Any:
    module, _, attribute = entry.target.partition(":")
    found = getattr(import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(entry.name, cls=Command)(found)
        found = single
    command = typer.main.get_command(found)
    command.name, command.short_help = entry.name, entry.summary
    return command


def _write_options(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None:
            record = (_TYPE.sub(lambda found: _PLACEHOLDERS[found[1]], record[0]), record[1])
            default = "Arguments" if parameter.param_type_name == "argument" else OPTIONS
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or default, []).append(record)
    # Options without a panel, such as --json and --help, come last.
    for title in sorted(panels, key=lambda title: title == OPTIONS):
        with formatter.section(_heading(title)):
            formatter.write_dl(panels[title])


def _heading(title: str) -> str:
    """A bold title; Typer drops the style if the output is not a terminal."""
    return typer.style(title, bold=True)
