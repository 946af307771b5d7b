"""One JSON Lines file that is resumed, with a record of its settings beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ragalign._locks import FileLock, LockedError
from ragalign.errors import DataError
from ragalign.runs.lines import LineFile
from ragalign.runs.settings import as_json, fingerprint, read_record, require_same
from ragalign.runs.writing import write_json

RUN = "run"
"""The field of every row that names the settings it was made with."""


class OutputFile:
    """A file of rows, opened for writing and locked until it is closed; a context manager.

    Every row carries the fingerprint of the settings as ``run``, so that a file that lost its record, or was joined
    with another, is noticed.

    Args:
        path: the file; made if missing.
        settings: whatever decides the rows, as JSON values.
        keys: what every row has, the first one first.
        record: whether to keep the settings in ``NAME.run.json``; a run folder keeps them for its files.

    Raises:
        ConfigError: the file was made with other settings.
        DataError: it holds something else, another process is writing it, or it cannot be written. It is left as it is.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], keys: tuple[str, ...], *, record: bool = True) -> None:
        self.path = path
        self._run = fingerprint(as_json(settings))
        self._record = path.with_name(f"{path.name}.run.json") if record else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path, follow=True)
        except LockedError:
            raise DataError(
                f"another process is writing {path}; wait until it is done, or choose another output"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from None
        try:
            present = read_record(self._record) if self._record is not None else None
            self._lines = LineFile(path, (*keys, RUN), claimed=present is not None or not record)
            self.rows = self._lines.read()
            self._check(present, as_json(settings))
            self._lines.repair()
        except BaseException:
            self.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row, whole and at once.

        Raises:
            DataError: it cannot be written.
        """
        self._lines.append({**row, RUN: self._run})

    def close(self) -> None:
        """Let others write."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, present: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
        if self.rows and present is not None:
            require_same(present, wanted, self.path)
        for number, row in enumerate(self.rows, start=1):
            if row[RUN] != self._run:
                raise DataError(
                    f"{self.path}, line {number}: made with other settings than those asked for now "
                    f"(run {row[RUN]!r}, not {self._run!r}); choose another output"
                )
        if self._record is not None and present != wanted:
            try:
                write_json(self._record, wanted)
            except OSError as error:
                raise DataError(f"cannot write {self._record}: {error.strerror}") from None
