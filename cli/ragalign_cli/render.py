"""`ragalign render`: show a prompt file's parts, or render conversations with it."""

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
        Path, typer.Option(metavar="FILE", help="A prompt file, such as one of URIAL's.", show_default=False)
    ],
    form: Annotated[
        str,
        typer.Option(help="A template's name or TOML file, if the prompt file's template cannot be detected."),
    ] = "auto",
    turns: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Conversations to render: JSON Lines of {"turns": [user, assistant, user, ...]}.',
            show_default=False,
        ),
    ] = None,
    parse: Annotated[bool, typer.Option("--parse", help="Show the prompt file's parts instead.")] = False,
    escape: Annotated[
        str,
        typer.Option(
            metavar="none|neutralise",
            help="How to treat delimiters in the turns; none reproduces the published prompts exactly.",
        ),
    ] = "neutralise",
    json: Annotated[bool, typer.Option("--json", help="Print JSON Lines.")] = False,
) -> None:
    """Render conversations with a prompt file, or show its parts.

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
    # The template rejects other values.
    file = replace(file, template=replace(file.template, escape=cast("Any", escape)))
    for where, text in _render_all(file, turns):
        if json:
            console.print_json({"text": text, "stop": list(file.template.stop)})
        else:
            console.heading(where)
            console.stdout().print(text, markup=False)


def _render_all(file: PromptFile, path: Path) -> Iterator[tuple[str, str]]:
    """(file and line, rendered text) of each conversation of a file."""
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
        # The error's line number is relative to this line, so give the character only.
        why = f"{error.msg}, character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"not JSON ({why}); expected " + '{"turns": [...]}') from None
    texts = row.get("turns") if isinstance(row, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError('expected an object with "turns", a list of strings that starts and ends with the user\'s turn')
    return [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]


def _show_file(file: PromptFile, json: bool) -> None:
    shown = [constant.demonstration for constant in file.constants]
    if json:
        rows: list[dict[str, Any]] = [
            {"instruction": demonstration.instruction, "response": demonstration.response} for demonstration in shown
        ]
        console.print_json({"preamble": file.preamble, "demonstrations": rows, "n": len(rows)})
        return
    n_unanswered = sum(not demonstration.response for demonstration in shown)
    unanswered = f", {n_unanswered} of them without an answer" if n_unanswered else ""
    out = console.stdout()
    out.print(f"form {file.template.name}, {len(shown)} demonstrations{unanswered}", markup=False)
    out.print(f"\npreamble, {len(file.preamble):,} characters:\n{file.preamble.strip()}\n", markup=False)
    table = [
        (
            number,
            _first_line(demonstration.instruction),
            f"{len(demonstration.response):,}",
            _first_line(demonstration.response),
        )
        for number, demonstration in enumerate(shown, start=1)
    ]
    if table:
        columns = [("", "right"), ("instruction", "left"), ("characters", "right"), ("response", "left")]
        console.print_table(columns, table)


def _first_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "\u2026"
