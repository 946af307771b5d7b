"""`ragalign pool`: inspect, convert and deduplicate files of demonstrations."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragalign_cli import console, pool_refine, pool_scores
from ragalign_cli.help import Command, group
from ragalign_cli.pool_options import (
    LISTED,
    Fields,
    Metadata,
    OnError,
    PoolOut,
    Shape,
    Unwrap,
    file_records,
    load,
    note_unused,
    print_files,
    warn_of_skipped,
)

if TYPE_CHECKING:
    from ragalign.pool import Duplicate, Lengths, LoadReport, Pool

_NAME_WIDTH = 24
_MIN_TEXT_WIDTH = 24

app = group("Inspect, convert, deduplicate, score and refine files of demonstrations.")

Files = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE",
        help="JSON Lines, JSON, CSV, TSV or Parquet files, or datasets (name, name:split, name:config:split).",
        show_default=False,
    ),
]


@app.command("inspect", cls=Command)
def inspect(
    files: Files,
    shape: Shape = "auto",
    field: Fields = None,
    on_error: OnError = "skip",
    metadata: Metadata = None,
    unwrap: Unwrap = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with all skipped rows.")] = False,
) -> None:
    """Count rows, shapes, duplicates, lengths, scores and bad rows.

    A duplicate has the instruction and response of an earlier row in any of the files.

    \b
    Examples:
      ragalign pool inspect answers.jsonl
      ragalign pool inspect lima.jsonl alpaca.json --unwrap
      ragalign pool inspect faq.csv --field instruction=question_text \\
          --field response=reply --json
    """
    from ragalign.pool import word_lengths

    pool = load(files, shape, field, on_error, unwrap, metadata)
    note_unused(pool.report)
    repeated = len(pool.duplicates())
    words = {name: word_lengths(pool.table[name]) for name in ("instruction", "response")}
    if as_json:
        console.print_json(
            {
                "files": file_records(pool.report),
                "n_demonstrations": len(pool),
                "n_repeated_instructions": repeated,
                "fingerprint": pool.fingerprint,
                "words": {name: _length_record(lengths) for name, lengths in words.items()},
                "scores": pool_scores.score_records(pool),
            }
        )
        return
    print_files(pool.report)
    console.heading("length in words")
    console.print_table(
        [("", "left"), *((name, "right") for name in ("min", "25 %", "median", "75 %", "95 %", "max", "mean"))],
        [[name, *(f"{value:,.0f}" for value in _length_record(lengths).values())] for name, lengths in words.items()],
    )
    pool_scores.print_scores(pool)
    console.stdout().print(
        f"\n{len(pool):,} demonstrations; {repeated:,} repeat an earlier instruction with a different response"
    )
    _print_skipped(pool.report)


@app.command("convert", cls=Command)
def convert(
    files: Files,
    out: PoolOut,
    shape: Shape = "auto",
    field: Fields = None,
    on_error: OnError = "strict",
    metadata: Metadata = None,
    unwrap: Unwrap = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    """Write files of any shape as one pool.

    Duplicates are written once.

    \b
    Examples:
      ragalign pool convert lima.jsonl alpaca.json --out pool.parquet
      ragalign pool convert wrapped_sharegpt.json --unwrap --on-error skip \\
          --out pool.jsonl
      ragalign pool convert tatsu-lab/alpaca --out alpaca.jsonl
    """
    pool = load(files, shape, field, on_error, unwrap, metadata)
    pool.save(out)
    if as_json:
        console.print_json({"files": file_records(pool.report), **_pool_record(pool, out)})
    else:
        print_files(pool.report)
    warn_of_skipped(pool.report)
    note_unused(pool.report)
    console.note(f"wrote {len(pool):,} demonstrations to {out}")


@app.command("dedupe", cls=Command)
def dedupe(
    files: Files,
    out: PoolOut,
    near: Annotated[
        float | None,
        typer.Option(
            "--near-duplicates",
            metavar="S",
            help="Also remove instructions this similar to an earlier one: Jaccard similarity of character "
            "5-grams, above 0 and at most 1, such as 0.8.",
            show_default=False,
        ),
    ] = None,
    shape: Shape = "auto",
    field: Fields = None,
    on_error: OnError = "strict",
    metadata: Metadata = None,
    unwrap: Unwrap = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per removed demonstration.")] = False,
) -> None:
    """Remove demonstrations that repeat an earlier instruction.

    Case, spacing and Unicode form are ignored. The first demonstration with an instruction is kept.

    \b
    Examples:
      ragalign pool dedupe answers.jsonl --out unique.jsonl
      ragalign pool dedupe lima.jsonl alpaca.json --near-duplicates 0.8 \\
          --out unique.parquet --json > removed.jsonl
    """
    pool = load(files, shape, field, on_error, unwrap, metadata)
    duplicates = pool.duplicates(near)
    kept = pool.without(duplicate.id for duplicate in duplicates)
    kept.save(out)
    if as_json:
        for duplicate in duplicates:
            console.print_json(_duplicate_record(pool, duplicate))
    else:
        _print_duplicates(pool, duplicates)
    warn_of_skipped(pool.report)
    note_unused(pool.report)
    same = pool.report.n_duplicates
    console.note(
        f"removed {len(duplicates):,} of {len(pool):,} demonstrations"
        + (f" ({same:,} rows were exact duplicates)" if same else "")
        + f"; wrote {len(kept):,} to {out}"
    )


app.command("score", cls=Command)(pool_scores.score)
app.command("select", cls=Command)(pool_scores.select)
app.command("refine", cls=Command)(pool_refine.refine)


def _print_skipped(report: LoadReport) -> None:
    skipped = report.skipped
    if skipped:
        console.heading("skipped")
        for row in skipped[:LISTED]:
            console.stdout().print(str(row), markup=False)
        _print_rest(len(skipped))


def _print_duplicates(pool: Pool, duplicates: Sequence[Duplicate]) -> None:
    rows = []
    for duplicate in duplicates[:LISTED]:
        removed, first = pool.get(duplicate.id), pool.get(duplicate.duplicate_of)
        names = [console.shortened(demo.source_id or demo.id, _NAME_WIDTH) for demo in (removed, first)]
        rows.append([*names, f"{duplicate.similarity:.3f}", removed.instruction])
    if rows:
        taken = sum(max(len("removed"), *(len(row[i]) for row in rows)) + 2 for i in (0, 1)) + len("similarity") + 2
        width = max(_MIN_TEXT_WIDTH, shutil.get_terminal_size().columns - taken)
        columns = [("removed", "left"), ("repeats", "left"), ("similarity", "right"), ("instruction", "left")]
        console.print_table(columns, [[*row[:3], console.shortened(row[3], width)] for row in rows])
        _print_rest(len(duplicates))


def _print_rest(total: int) -> None:
    if total > LISTED:
        console.stdout().print(f"... and {total - LISTED:,} more; --json lists all")


def _pool_record(pool: Pool, out: Path) -> dict[str, Any]:
    return {"n_demonstrations": len(pool), "fingerprint": pool.fingerprint, "out": str(out)}


def _length_record(lengths: Lengths) -> dict[str, float]:
    names = ("min", "p25", "median", "p75", "p95", "max", "mean")
    return {name: round(getattr(lengths, name), 2) for name in names}


def _duplicate_record(pool: Pool, duplicate: Duplicate) -> dict[str, Any]:
    removed, first = pool.get(duplicate.id), pool.get(duplicate.duplicate_of)
    return {
        "id": removed.id,
        "source": removed.source,
        "source_id": removed.source_id,
        "duplicate_of": {"id": first.id, "source": first.source, "source_id": first.source_id},
        "similarity": duplicate.similarity,
    }
