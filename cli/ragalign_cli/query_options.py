"""Options and output that all commands which read questions share."""

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

QUERIES_HELP = "Questions: any file that a pool can be read from, or - for standard input."

QuestionFields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="[FIELD=]NAME",
        help="The rows' own name of the question, or of input, system, history, conversations or id. Repeatable.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata",
        metavar="NAME",
        help="A field that is no part of a question. Repeatable.",
        show_default=False,
        rich_help_panel=QUESTIONS,
    ),
]

# What `ragalign.bench.cases.Case` and the built-in metrics take out of a query's metadata.
_CASE_FIELDS = ("reference", "category", "dataset", "key", "instruction_id_list", "kwargs")


def question_fields(given: Sequence[str] | None) -> Mapping[str, str]:
    """The names that ``--field`` gives; a name by itself is the question's."""
    return named_fields([text if "=" in text else f"instruction={text}" for text in given or []])


def read(path: str | Path, field: Sequence[str] | None = None, metadata: Sequence[str] | None = None) -> list[Query]:
    """The questions of a file; notes what they leave out."""
    from ragalign.pool.queries import read_queries

    queries = read_queries(path, fields=question_fields(field), metadata=metadata or ())
    note_unused(queries, metadata)
    return queries


def read_cases(
    name_or_file: str, first: int | None, field: Sequence[str] | None = None, metadata: Sequence[str] | None = None
) -> Cases:
    """A prompt set by name, or the questions of a file; notes what they leave out."""
    from ragalign.bench.cases import load_cases

    cases = load_cases(name_or_file, fields=question_fields(field), metadata=metadata or ()).first(first)
    note_unused([case.query for case in cases.cases], [*_CASE_FIELDS, *(metadata or ())])
    return cases


def note_unused(queries: Sequence[Query], metadata: Sequence[str] | None = None) -> None:
    """Say which fields and turns are no part of any question."""
    from ragalign.pool.queries import FURTHER_TURNS, unused_fields

    if unused := unused_fields(queries, metadata or ()):
        console.note(f"not part of any question: {counted(unused)}; kept as metadata (--metadata NAME says that it is)")
    if n_further := sum(bool(query.metadata.get(FURTHER_TURNS)) for query in queries):
        have = "question has" if n_further == 1 else "questions have"
        console.note(f"{n_further:,} {have} later turns; only the first is asked (`ragalign bench` asks all)")
