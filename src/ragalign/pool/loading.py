"""Loading files and datasets into the table of a pool, with a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from ragalign._progress import progress
from ragalign._sources import STANDARD_INPUT
from ragalign.errors import ConfigError, DataError
from ragalign.pool import storage
from ragalign.pool.hub import looks_like_dataset, read_dataset
from ragalign.pool.readers import EXTENSIONS, exists, read_file
from ragalign.pool.report import FileReport, LoadReport, SkippedRow, Unit, location
from ragalign.pool.rows import Problem, Rows
from ragalign.pool.shapes import FURTHER_TURNS, ParsedRow, RowParser
from ragalign.pool.table import TableBuilder, check_surrogates, check_text, metadata_json
from ragalign.pool.wrappers import unwrap
from ragalign.questions import BadRowError, is_empty
from ragalign.types import content_id

OnError = Literal["strict", "skip"]

_ADVICE = 'correct the row, or skip such rows (on_error="skip", --on-error skip)'
_ROWS_BEFORE_PROGRESS = 50_000
_ROWS_PER_PROGRESS = 10_000


def load(
    sources: Sequence[str | Path],
    *,
    shape: str = "auto",
    fields: Mapping[str, str] | None = None,
    metadata: Collection[str] = (),
    on_error: OnError = "strict",
    unwrap: bool = False,
) -> tuple[pa.Table, LoadReport]:
    """Read all sources, in order, into a table without duplicates; see `Pool.load` for the arguments.

    Raises:
        DataError: a source cannot be read, a row cannot be used (strict), or no row is left.
        ConfigError: an option is invalid.
    """
    if on_error not in ("strict", "skip"):
        raise ConfigError(f"unknown on_error {on_error!r}: use strict or skip")
    if not sources:
        raise ConfigError("no source: name at least one file or dataset")
    parser = RowParser(shape, fields, metadata)
    if len(sources) == 1 and shape == "auto" and not fields and not unwrap:
        path = Path(sources[0])
        saved = storage.read_saved_parquet(path) if exists(path) else None
        if saved is not None:
            n_rows = saved.num_rows
            report = FileReport(str(sources[0]), n_rows, n_loaded=n_rows, n_duplicates=0, shapes={"ragalign": n_rows})
            return saved, LoadReport((report,))
    loader = _Loader(parser, strict=on_error == "strict", unwrap_instructions=unwrap, metadata=frozenset(metadata))
    with ExitStack() as stack:
        loader.on_rows = _late_progress(stack)
        files = tuple(loader.read(source) for source in sources)
    table = loader.builder.build()
    if not table.num_rows:
        names = ", ".join(file.file for file in files)
        raise DataError(f"{names}: no usable row; {_first_reason(files)}")
    return table, LoadReport(files)


class _Loader:
    """Reads sources one after another, and adds equal content once."""

    def __init__(self, parser: RowParser, *, strict: bool, unwrap_instructions: bool, metadata: frozenset[str]) -> None:
        self.builder = TableBuilder()
        self.on_rows: Callable[[int], None] = lambda _: None
        self._parser = parser
        self._strict = strict
        self._unwrap = unwrap_instructions
        self._metadata = metadata
        self._seen: set[int] = set()

    def read(self, source: str | Path) -> FileReport:
        """Add the rows of one file or dataset."""
        name, unit, rows = _open(source)
        file = str(source)
        skipped: list[SkippedRow] = []
        shapes: Counter[str] = Counter()
        unused: Counter[str] = Counter()
        first_with_id: dict[str, tuple[int, int]] = {}
        n_rows = n_loaded = n_multi_turn = n_unwrapped = n_wrapped = 0
        for number, row in rows:
            n_rows += 1
            self.on_rows(1)
            try:
                parsed, metadata, was_wrapped = self._parse(row)
                key = content_id(parsed.instruction, parsed.response)
                content = int(key, 16)
                if parsed.source_id is not None and parsed.source is None:
                    earlier, line = first_with_id.setdefault(parsed.source_id, (content, number))
                    if earlier != content:
                        raise BadRowError(
                            f"the id {parsed.source_id!r} was already used in {unit} {line} for other content"
                        )
            except BadRowError as error:
                if self._strict:
                    raise DataError(
                        f"{location(file, number, unit)}: {error.reason}; {error.advice or _ADVICE}"
                    ) from None
                skipped.append(SkippedRow(file, number, error.reason, unit))
                continue
            shapes[parsed.shape] += 1
            n_multi_turn += parsed.n_turns > 2
            n_unwrapped += was_wrapped and self._unwrap
            n_wrapped += was_wrapped and not self._unwrap
            unused.update(self._unused(parsed))
            if content in self._seen:
                continue
            self._seen.add(content)
            n_loaded += 1
            origin = name if parsed.source is None else parsed.source
            self.builder.add(key, parsed.instruction, parsed.response, origin, parsed.source_id, metadata)
        if not n_rows:
            raise DataError(f"{file}: the file has no rows; name a file with at least one row")
        n_duplicates = n_rows - n_loaded - len(skipped)
        return FileReport(
            file,
            n_rows,
            n_loaded,
            n_duplicates,
            n_multi_turn,
            n_unwrapped,
            n_wrapped,
            dict(shapes),
            tuple(skipped),
            dict(unused),
        )

    def _unused(self, parsed: ParsedRow) -> list[str]:
        if parsed.shape == "ragalign":
            return []
        known = {FURTHER_TURNS, *self._metadata}
        return [name for name, value in parsed.metadata.items() if name not in known and not is_empty(value)]

    def _parse(self, row: dict[str, Any] | Problem) -> tuple[ParsedRow, str, bool]:
        if isinstance(row, Problem):
            raise BadRowError(row.reason)
        parsed = self._parser.parse(row)
        unwrapped = unwrap(parsed.instruction)
        if unwrapped is not None and self._unwrap:
            parsed = replace(parsed, instruction=unwrapped)
        check_text("instruction", parsed.instruction)
        check_text("response", parsed.response)
        for text in (parsed.source_id, parsed.source):
            if text is not None:
                check_surrogates("the id or source", text)
        return parsed, metadata_json(parsed.metadata), unwrapped is not None


def _open(source: str | Path) -> tuple[str, Unit, Rows]:
    """The source's name, the unit that its rows are counted in, and the rows."""
    if str(source) == STANDARD_INPUT:
        unit, rows = read_file(source)
        return "standard input", unit, rows
    path = Path(source)
    if isinstance(source, str) and not exists(path) and looks_like_dataset(source, EXTENSIONS):
        return source, "row", read_dataset(source)
    unit, rows = read_file(path)
    return path.name, unit, rows


def _late_progress(stack: ExitStack) -> Callable[[int], None]:
    """A row counter that shows a progress bar only if loading takes long."""
    count = 0
    advance: Callable[[int], None] | None = None

    def on_rows(n: int) -> None:
        nonlocal count, advance
        count += n
        if count == _ROWS_BEFORE_PROGRESS:
            advance = stack.enter_context(progress("Loading", None, "rows"))
            advance(count)
        elif advance is not None and count % _ROWS_PER_PROGRESS == 0:
            advance(_ROWS_PER_PROGRESS)

    return on_rows


def _first_reason(files: Sequence[FileReport]) -> str:
    skipped = next((row for file in files for row in file.skipped), None)
    return f"first reason: {skipped}"
