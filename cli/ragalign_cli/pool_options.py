"""Options and output that all commands which read pools share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragalign_cli import console

if TYPE_CHECKING:
    from ragalign.pool import LoadReport, Pool

LISTED = 20

Shape = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="auto recognises each row's: alpaca, dolly, plain, sharegpt, messages, lima or ragalign.",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="FIELD=NAME",
        help="The rows' own name of instruction, input, response, id or conversations. Repeatable.",
        show_default=False,
    ),
]
OnError = Annotated[
    Literal["strict", "skip"], typer.Option(help="Stop at a bad row, or leave bad rows out and list them.")
]
Unwrap = Annotated[bool, typer.Option("--unwrap", help="Take instructions out of the Alpaca prompt template.")]


def load(
    files: Sequence[str], shape: str, field: Sequence[str] | None, on_error: Literal["strict", "skip"], unwrap: bool
) -> Pool:
    """The pool of several files."""
    from ragalign.pool import Pool

    return Pool.load(files, shape=shape, fields=_fields(field or []), on_error=on_error, unwrap=unwrap)


def _fields(given: Sequence[str]) -> Mapping[str, str]:
    from ragalign.errors import ConfigError

    fields: dict[str, str] = {}
    for text in given:
        name, equals, own = text.partition("=")
        if not name or not equals or not own:
            raise ConfigError(f"--field {text!r}: write it as FIELD=NAME, such as instruction=question")
        if name in fields:
            raise ConfigError(f"--field {name} is given twice")
        fields[name] = own
    return fields


def print_files(report: LoadReport) -> None:
    """A table of what was read, one row per file."""
    multi_turn = any(file.n_multi_turn for file in report.files)
    unwrapped = any(file.n_unwrapped for file in report.files)
    columns = [("file", "left"), ("shape", "left")]
    columns += [(name, "right") for name in ("rows", "loaded", "duplicates", "skipped")]
    columns += [("multi-turn", "right")] * multi_turn + [("unwrapped", "right")] * unwrapped
    names = [Path(file.file).name for file in report.files]
    if len(set(names)) < len(names):
        names = [file.file for file in report.files]
    rows = []
    for name, file in zip(names, report.files, strict=True):
        counts = [file.n_rows, file.n_loaded, file.n_duplicates, len(file.skipped)]
        counts += [file.n_multi_turn] * multi_turn + [file.n_unwrapped] * unwrapped
        rows.append([name, _shapes(file.shapes), *(f"{count:,}" for count in counts)])
    console.print_table(columns, rows)


def warn_of_skipped(report: LoadReport) -> None:
    """One warning per skipped row, up to a point."""
    for row in report.skipped[:LISTED]:
        console.warning(f"skipped {row}")
    if len(report.skipped) > LISTED:
        rest = len(report.skipped) - LISTED
        console.warning(f"skipped {rest:,} more rows; `ragalign pool inspect --json` lists all")


def file_records(report: LoadReport) -> list[dict[str, Any]]:
    """What was read, for scripts."""
    return [
        {
            "file": file.file,
            "shapes": dict(file.shapes),
            "n_rows": file.n_rows,
            "n_loaded": file.n_loaded,
            "n_duplicates": file.n_duplicates,
            "n_multi_turn": file.n_multi_turn,
            "n_unwrapped": file.n_unwrapped,
            "n_skipped": len(file.skipped),
            "skipped": [{row.unit: row.line, "reason": row.reason} for row in file.skipped],
        }
        for file in report.files
    ]


def _shapes(shapes: Mapping[str, int]) -> str:
    if len(shapes) == 1:
        return next(iter(shapes))
    return ", ".join(f"{name} {count:,}" for name, count in shapes.items()) or "-"
