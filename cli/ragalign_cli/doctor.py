"""`ragalign doctor`: check whether a model suits in-context alignment, and how to fix it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragalign_cli import console

if TYPE_CHECKING:
    from ragalign.doctor.checks import Check

_STYLES = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


def doctor(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder, GGUF file or hub id, or packaged:gemma-3-270m.", show_default=False
        ),
    ],
    index: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The index to retrieve from.", show_default=False)
    ] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name or TOML file.")] = "ica",
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Load the weights to test BOS and stop strings.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check a model, a recipe and an index, and suggest fixes. The exit status is 1 if anything is wrong.

    \b
    Examples:
      ragalign doctor meta-llama/Llama-3.1-8B
      ragalign doctor gemma.gguf --recipe hybrid --index indexes/mine
    """
    from ragalign.doctor import examine

    found = examine(model, recipe=recipe, index=index, weights=weights)
    if as_json:
        console.print_json(found.to_dict())
    else:
        _show(found.checks)
    if not found.is_fit:
        raise typer.Exit(console.EXIT_FAILURE)


def _show(checks: Sequence[Check]) -> None:
    """Print one line per check; on a terminal, long ones wrap inside their column."""
    from rich.table import Table
    from rich.text import Text

    out = console.stdout()
    if out.soft_wrap:
        width = max(len(check.name) for check in checks)
        for check in checks:
            out.print(f"{check.status:<7}  {check.name:<{width}}  {check.detail}", markup=False)
        return
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        table.add_row(Text(check.status, _STYLES[check.status]), check.name, Text(check.detail))
    out.print(table)
