"""Options and output shared by commands that read questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ragalign_cli import console
from ragalign_cli.options import QUESTIONS
from ragalign_cli.pool_options import counted, named_fields

if TYPE_CHECKING:
    from ragalign.bench.cases import Cases
    from ragalign.types import Query

QUERIES_HELP = "A question file in any format that pools can have, or - for standard input."

QuestionFields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="[FIELD=]NAME",
        help="The column with the question, or for input, system, history, conversations or id. Repeatable.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME",
        help="A column that is not part of the question. Repeatable.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]

# Metadata that `ragalign.bench.cases.Case` and the built-in metrics read.
_CASE_FIELDS = ("reference", "category", "dataset", "key", "instruction_id_list", "kwargs")


def question_fields(given: Sequence[str] | None) -> Mapping[str, str]:
    """Parse ``--field``; a name without a field is the question's column."""
    return named_fields([text if "=" in text else f"instruction={text}" for text in given or []])


def read(path: str | Path, field: Sequence[str] | None = None, metadata: Sequence[str] | None = None) -> list[Query]:
    """Read a question file, and note unused fields."""
    from ragalign.pool.queries import read_queries

    queries = read_queries(path, fields=question_fields(field), metadata=metadata or ())
    note_unused(queries, metadata)
    return queries


def read_cases(
    name_or_file: str, first: int | None, field: Sequence[str] | None = None, metadata: Sequence[str] | None = None
) -> Cases:
    """Load a prompt set by name, or a question file, and note unused fields."""
    from ragalign.bench.cases import load_cases

    cases = load_cases(name_or_file, fields=question_fields(field), metadata=metadata or ()).first(first)
    note_unused([case.query for case in cases.cases], [*_CASE_FIELDS, *(metadata or ())])
    return cases


def note_unused(queries: Sequence[Query], metadata: Sequence[str] | None = None) -> None:
    """Note fields and turns that are not part of any question."""
    from ragalign.pool.queries import FURTHER_TURNS, unused_fields

    if unused := unused_fields(queries, metadata or ()):
        console.note(f"not part of any question: {counted(unused)}; kept as metadata (--metadata NAME confirms this)")
    if n_further := sum(bool(query.metadata.get(FURTHER_TURNS)) for query in queries):
        have = "question has" if n_further == 1 else "questions have"
        console.note(f"{n_further:,} {have} later turns; only the first is asked (`ragalign bench` asks all turns)")
