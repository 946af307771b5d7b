"""`ragalign render`: what a prompt file holds, and the prompts that it makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ragalign_cli import console

if TYPE_CHECKING:
    from ragalign.templates import PromptFile
    from ragalign.types import Turn

_WIDTH = 28


def render(
    prompt_file: Annotated[
        Path, typer.Option(metavar="FILE", help="A published prompt file, or any other.", show_default=False)
    ],
    form: Annotated[
        str,
        typer.Option(help="A template's name or TOML file, where the prompt file's own form cannot be told."),
    ] = "auto",
    turns: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='JSON Lines of {"turns": [user, assistant, user, ...]}: conversations to render.',
            show_default=False,
        ),
    ] = None,
    parse: Annotated[bool, typer.Option("--parse", help="Show the prompt file's parts instead.")] = False,
    escape: Annotated[
        str,
        typer.Option(
            metavar="none|neutralise",
            help="What happens to delimiters in the turns; none gives the published prompts to the byte.",
        ),
    ] = "neutralise",
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Render conversations with a prompt file, or show what the file holds.

    \b
    Examples:
      ragalign render --prompt-file inst_1k_v4.txt --turns turns.jsonl \\
          --escape none --json
      ragalign render --prompt-file inst_1k_v4.txt --parse
    """
    from dataclasses import replace

    from ragalign.errors import ConfigError
    from ragalign.templates import PromptFile

    if parse == (turns is not None):
        raise ConfigError("give either --turns FILE or --parse")
    file = PromptFile.load(prompt_file, form)
    if turns is None:
        _show_file(file, json)
        return
    # The template refuses other values.
    file = replace(file, template=replace(file.template, escape=cast("Any", escape)))
    for where, text in _render_all(file, turns):
        if json:
            console.print_json({"text": text, "stop": list(file.template.stop)})
        else:
            console.heading(where)
            console.stdout().print(text, markup=False)


def _render_all(file: PromptFile, path: Path) -> Iterator[tuple[str, str]]:
    """(where it stands, rendered text) of each conversation of a file."""
    from ragalign.errors import DataError

    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                yield where, file.render(_read_turns(line))
            except DataError as error:
                raise DataError(f"{where}: {error}") from None


def _read_turns(line: bytes) -> list[Turn]:
    import json

    from ragalign.errors import DataError
    from ragalign.types import Turn

    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 (byte {error.start + 1}); convert the file") from None
    except (ValueError, RecursionError) as error:
        # Its line and column are those of this one line.
        why = f"{error.msg}, character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"not JSON ({why}); expected " + '{"turns": [...]}') from None
    texts = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError('expected an object with "turns", a list of texts that begins and ends with the user\'s')
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def _show_file(file: PromptFile, json: bool) -> None:
    shown = [constant.demonstration for constant in file.constants]
    if json:
        rows: list[dict[str, Any]] = [{"instruction": one.instruction, "response": one.response} for one in shown]
        console.print_json({"preamble": file.preamble, "demonstrations": rows, "n": len(rows)})
        return
    n_unanswered = sum(not one.response for one in shown)
    unanswered = f", {n_unanswered} of them without an answer" if n_unanswered else ""
    out = console.stdout()
    out.print(f"form {file.template.name}, {len(shown)} demonstrations{unanswered}", markup=False)
    out.print(f"\npreamble, {len(file.preamble):,} characters:\n{file.preamble.strip()}\n", markup=False)
    table = [
        (number, _first_line(one.instruction), f"{len(one.response):,}", _first_line(one.response))
        for number, one in enumerate(shown, start=1)
    ]
    if table:
        columns = [("", "right"), ("instruction", "left"), ("characters", "right"), ("response", "left")]
        console.print_table(columns, table)


def _first_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "\u2026"
