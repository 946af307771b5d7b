"""`ragalign search`: find demonstrations for queries."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragalign_cli import console, options, query_options

if TYPE_CHECKING:
    from ragalign.retrieval import SupportsRetrieve
    from ragalign.types import Hit, Query

_BATCH = 1024
_SOURCE_ID_WIDTH = 24
_MIN_INSTRUCTION_WIDTH = 20


def search(
    index: Annotated[Path, typer.Argument(metavar="DIR", help="The index folder.", show_default=False)],
    text: Annotated[
        str | None, typer.Argument(metavar="[QUESTION]", help="A question, instead of --queries.", show_default=False)
    ] = None,
    queries: Annotated[Path | None, typer.Option(help=query_options.QUERIES_HELP, show_default=False)] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Demonstrations per query.")] = 10,
    retriever: Annotated[
        str, typer.Option(metavar="NAME", help="dense, bm25, hybrid, mmr, dpp, rerank, random or fixed.")
    ] = "dense",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="An option of the retriever; values can be JSON. Repeatable.",
            show_default=False,
        ),
    ] = None,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self/--keep-self",
            help="Leave out demonstrations whose text is the query's, ignoring case and spaces. Evaluations always "
            "do this.",
        ),
    ] = False,
    near: Annotated[
        float | None,
        typer.Option(
            "--exclude-near",
            metavar="S",
            help="Leave out demonstrations this similar to the query (cosine).",
            show_default=False,
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="Only demonstrations with this metadata or `source`. Repeatable: values of the same key are "
            "alternatives, different keys must all match.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
) -> None:
    """Find demonstrations for a query or a file of queries.

    A query that is in the pool finds itself unless --exclude-self is given.

    \b
    Examples:
      ragalign search indexes/lima "How do brain cells move?"
      ragalign search indexes/lima "Sort a list in C" --retriever bm25 -k 5 \\
          --where category=code
      ragalign search indexes/lima "Plan a trip" --retriever mmr \\
          --option lambda=0.5 --option n_candidates=50
      ragalign search indexes/lima "Plan a trip" --retriever rerank \\
          --option first=hybrid
      ragalign search indexes/lima --queries queries.jsonl -k 20 --exclude-self \\
          --exclude-near 0.95 --json > hits.jsonl
    """
    from ragalign._progress import progress
    from ragalign.errors import ConfigError
    from ragalign.indexes import open_index
    from ragalign.retrieval import Exclusion, make_retriever
    from ragalign.types import Query, Turn

    if (text is None) == (queries is None):
        raise ConfigError("give either a question or --queries FILE")
    given = {key: _json_or_text(value) for key, value in _pairs("--option", option or [], repeatable=False)}
    conditions = _conditions(_pairs("--where", where or []))
    exclude = Exclusion(same_text=exclude_self, near=near) if exclude_self or near is not None else None
    if text is not None:
        asked = [Query("1", (Turn("user", _checked(text)),))]
    else:
        asked = options.first_of(query_options.read(queries or Path(), field, metadata), first)
    found = make_retriever(retriever, open_index(index), **given)
    results: list[list[Hit]] = []
    with progress("searching", len(asked), "queries") as advance:
        for start in range(0, len(asked), _BATCH):
            batch = asked[start : start + _BATCH]
            results += found.retrieve(batch, k, exclude=exclude, where=conditions)
            advance(len(batch))
    # Print after the progress bar is gone, since both share the terminal.
    show = _JsonLines(found) if as_json else _Tables(found, titles=queries is not None)
    for query, hits in zip(asked, results, strict=True):
        show(query, hits)


class _JsonLines:
    """Prints each query's hits as one JSON object."""

    def __init__(self, retriever: SupportsRetrieve) -> None:
        self._pool = retriever.pool

    def __call__(self, query: Query, hits: Sequence[Hit]) -> None:
        found = [
            {"id": hit.id, "score": hit.score, "rank": hit.rank, "source_id": self._pool.get(hit.id).source_id}
            for hit in hits
        ]
        console.print_json({"id": query.id, "hits": found})


class _Tables:
    """Prints each query's hits as a table that fits the terminal."""

    def __init__(self, retriever: SupportsRetrieve, *, titles: bool) -> None:
        self._pool = retriever.pool
        self._titles = titles

    def __call__(self, query: Query, hits: Sequence[Hit]) -> None:
        if self._titles:
            console.heading(f"query {query.id}")
        if not hits:
            console.note(f"query {query.id}: no hit")
            return
        demonstrations = [self._pool.get(hit.id) for hit in hits]
        ranks = [str(hit.rank) for hit in hits]
        scores = [f"{hit.score:.4f}" for hit in hits]
        source_ids = [console.shortened(demo.source_id or "-", _SOURCE_ID_WIDTH) for demo in demonstrations]
        headings = ("rank", "score", "source id")
        taken = sum(
            max(map(len, [heading, *cells])) + 2
            for heading, cells in zip(headings, (ranks, scores, source_ids), strict=True)
        )
        width = max(_MIN_INSTRUCTION_WIDTH, shutil.get_terminal_size().columns - taken)
        instructions = [console.shortened(demo.instruction, width) for demo in demonstrations]
        console.print_table(
            [("rank", "right"), ("score", "right"), ("source id", "left"), ("instruction", "left")],
            list(zip(ranks, scores, source_ids, instructions, strict=True)),
        )


def _checked(text: str) -> str:
    from ragalign.errors import ConfigError

    if not text.strip():
        raise ConfigError("the text to search for is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("the text to search for is not valid UTF-8; check the terminal's encoding") from None
    return text


def _pairs(name: str, given: Sequence[str], *, repeatable: bool = True) -> list[tuple[str, str]]:
    from ragalign.errors import ConfigError

    pairs: list[tuple[str, str]] = []
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"{name} {text!r}: write it as KEY=VALUE")
        if not repeatable and any(key == other for other, _ in pairs):
            raise ConfigError(f"{name} {key} is given twice")
        pairs.append((key, value))
    return pairs


def _json_or_text(value: str) -> Any:
    from ragalign._parsing import parse_json

    try:
        return parse_json(value)
    except ValueError:
        return value


def _conditions(pairs: Sequence[tuple[str, str]]) -> Mapping[str, list[Any]]:
    """Each key with its values; a value that is JSON matches both as JSON and as text."""
    conditions: dict[str, list[Any]] = {}
    for key, text in pairs:
        value = _json_or_text(text)
        conditions.setdefault(key, []).extend([text] if isinstance(value, str) and value == text else [value, text])
    return conditions
