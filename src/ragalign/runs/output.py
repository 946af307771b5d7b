"""Resumable JSON Lines files with a record of their settings."""

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
"""The field of every row with the fingerprint of its settings."""


class OutputFile:
    """A file of rows, opened for appending and locked until it is closed; a context manager.

    Every row has the fingerprint of the settings as ``run``, to detect a file that lost its record or was merged with
    another.

    Args:
        path: the file, created if missing.
        settings: everything that determines the rows, as JSON values.
        keys: the keys of every row; the first one is written first.
        record: whether to write the settings to ``NAME.run.json``; a run folder records them for its files.
        stamped: whether rows have the fingerprint; only for files whose rows must have no other keys than their own.

    Raises:
        ConfigError: the file was made with other settings.
        DataError: the file has other content, another process is writing it, or it cannot be written. The file is not
            changed.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        keys: tuple[str, ...],
        *,
        record: bool = True,
        stamped: bool = True,
    ) -> None:
        self.path = path
        self._stamped = stamped
        self._run = fingerprint(as_json(settings))
        self._record = path.with_name(f"{path.name}.run.json") if record else None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path, follow=True)
        except LockedError:
            raise DataError(
                f"another process is writing {path}; wait for it to finish, or choose another output"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}") from None
        try:
            present = read_record(self._record) if self._record is not None else None
            self._lines = LineFile(path, (*keys, RUN) if stamped else keys, claimed=present is not None or not record)
            self.rows = self._lines.read()
            self._check(present, as_json(settings))
            self._lines.repair()
        except BaseException:
            self.close()
            raise

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one row with a single write.

        Raises:
            DataError: it cannot be written.
        """
        self._lines.append({**row, RUN: self._run} if self._stamped else row)

    def close(self) -> None:
        """Unlock the file."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, present: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> None:
        if self.rows and present is not None:
            require_same(present, wanted, self.path)
        if self.rows and present is None and self._record is not None and not self._stamped:
            raise DataError(f"{self.path} has rows, but no {self._record.name} beside it; choose another output")
        for number, row in enumerate(self.rows, start=1):
            if self._stamped and row[RUN] != self._run:
                raise DataError(
                    f"{self.path}, line {number}: made with other settings "
                    f"(run {row[RUN]!r}, not {self._run!r}); choose another output"
                )
        if self._record is not None and present != wanted:
            try:
                write_json(self._record, wanted)
            except OSError as error:
                raise DataError(f"cannot write {self._record}: {error.strerror}") from None
