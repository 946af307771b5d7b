"""`ragalign doctor`: check whether a model suits in-context alignment, and how to fix it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ragalign_cli import console

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
        out = console.stdout()
        width = max(len(check.name) for check in found.checks)
        for check in found.checks:
            style = _STYLES[check.status]
            out.print(f"[{style}]{check.status:<7}[/{style}]  {check.name:<{width}}  ", end="")
            out.print(check.detail, markup=False)
    if not found.is_fit:
        raise typer.Exit(console.EXIT_FAILURE)
