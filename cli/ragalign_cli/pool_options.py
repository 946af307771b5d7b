"""Options and output shared by commands that read pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragalign_cli import console
from ragalign_cli.paths import out_pool

if TYPE_CHECKING:
    from ragalign.pool import LoadReport, Pool

LISTED = 20

PoolOut = Annotated[
    Path,
    typer.Option(metavar="FILE", help="The .jsonl or .parquet file to write.", show_default=False, callback=out_pool),
]
Shape = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Shape of the rows: alpaca, dolly, plain, sharegpt, messages, lima or ragalign; auto detects it.",
    ),
]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="FIELD=NAME",
        help="The column for instruction, input, response, system, history, id or conversations. Repeatable.",
        show_default=False,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME",
        help="A column that is not part of the demonstration. Repeatable.",
        show_default=False,
    ),
]
OnError = Annotated[Literal["strict", "skip"], typer.Option(help="Stop at a bad row, or skip bad rows and list them.")]
Unwrap = Annotated[bool, typer.Option("--unwrap", help="Extract instructions from the Alpaca prompt template.")]


def load(
    files: Sequence[str],
    shape: str,
    field: Sequence[str] | None,
    on_error: Literal["strict", "skip"],
    unwrap: bool,
    metadata: Sequence[str] | None = None,
) -> Pool:
    """Load a pool from several files."""
    from ragalign.pool import Pool

    fields = named_fields(field or [])
    return Pool.load(files, shape=shape, fields=fields, metadata=metadata or (), on_error=on_error, unwrap=unwrap)


def named_fields(given: Sequence[str]) -> Mapping[str, str]:
    """Parse values of ``--field FIELD=NAME``.

    Raises:
        ConfigError: a value is malformed, or a field is given twice.
    """
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
    """Print a table of the files read."""
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
    """Warn of skipped rows: the first few by name, the rest as a count."""
    for row in report.skipped[:LISTED]:
        console.warning(f"skipped {row}")
    if len(report.skipped) > LISTED:
        rest = len(report.skipped) - LISTED
        console.warning(f"skipped {rest:,} more rows; `ragalign pool inspect --json` lists all")


def note_unused(report: LoadReport) -> None:
    """Note columns that are not part of demonstrations, and instructions in the Alpaca prompt template."""
    for file in report.files:
        if file.unused:
            console.note(
                f"{file.file}: not part of any demonstration: {counted(file.unused)}; kept as metadata "
                "(--metadata NAME confirms this, --field input=NAME adds it to the instruction)"
            )
        if file.n_wrapped:
            console.note(
                f"{file.file}: {file.n_wrapped:,} of {file.n_rows:,} instructions are in the Alpaca prompt template; "
                "--unwrap extracts them"
            )


def counted(fields: Mapping[str, int]) -> str:
    """Field names with the number of rows that have a value."""
    return ", ".join(f"{name} ({n:,} row{'s' if n != 1 else ''})" for name, n in fields.items())


def file_records(report: LoadReport) -> list[dict[str, Any]]:
    """The files read, as JSON values."""
    return [
        {
            "file": file.file,
            "shapes": dict(file.shapes),
            "n_rows": file.n_rows,
            "n_loaded": file.n_loaded,
            "n_duplicates": file.n_duplicates,
            "n_multi_turn": file.n_multi_turn,
            "n_unwrapped": file.n_unwrapped,
            "n_wrapped": file.n_wrapped,
            "unused": dict(file.unused),
            "n_skipped": len(file.skipped),
            "skipped": [{row.unit: row.line, "reason": row.reason} for row in file.skipped],
        }
        for file in report.files
    ]


def _shapes(shapes: Mapping[str, int]) -> str:
    if len(shapes) == 1:
        return next(iter(shapes))
    return ", ".join(f"{name} {count:,}" for name, count in shapes.items()) or "-"
