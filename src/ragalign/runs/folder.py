"""Run folders: one writer at a time, with fixed settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ragalign._locks import LockedError, locked
from ragalign.errors import DataError
from ragalign.runs.lines import LineFile
from ragalign.runs.settings import as_json, read_record, require_same
from ragalign.runs.writing import write_json

RECORD = "run.json"
_LOCK = ".lock"


class RunFolder:
    """A run folder. Nothing is written before `claim`.

    Args:
        path: the folder, created if missing.
        record: name of the file with the settings.
    """

    def __init__(self, path: str | Path, *, record: str = RECORD) -> None:
        self.path = Path(path)
        self.record = self.path / record
        self._depth = 0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the folder's lock; blocks of the same `RunFolder` can be nested.

        Raises:
            DataError: another process is using the folder, or the folder is not writable.
        """
        if self._depth:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        lock = locked(self.path / _LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.__enter__()
        except LockedError:
            raise DataError(
                f"another process is using {self.path}; wait for it to finish, or choose another folder"
            ) from None
        except OSError as error:
            raise DataError(f"cannot write to the folder {self.path}: {error.strerror}") from None
        self._depth = 1
        try:
            yield
        finally:
            self._depth = 0
            lock.__exit__(None, None, None)

    def claim(self, settings: Mapping[str, Any], *, work: str = "*") -> None:
        """Record the settings, or compare them with the recorded ones.

        While the folder has no work, its settings can still change.

        Args:
            settings: everything that determines the results, as JSON values.
            work: a glob of the files that the run writes. A folder with such files and no record is refused.

        Raises:
            ConfigError: the folder has work with other settings.
            DataError: the folder has other content, its record is damaged, or another process is using it.
        """
        wanted = as_json(settings)
        self._refuse_foreign(work)  # before a lock file is created there
        with self.writing():
            self._refuse_foreign(work)
            present = read_record(self.record)
            if present is not None and self._has(work):
                require_same(present, wanted, self.path)
            if present != wanted:
                self.write_json(self.record.name, wanted)

    def lines(self, name: str, keys: tuple[str, ...]) -> LineFile:
        """A file of rows in the folder; see `LineFile`."""
        return LineFile(self.path / name, keys)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON document into the folder, atomically.

        Raises:
            DataError: it cannot be written.
        """
        try:
            write_json(self.path / name, value)
        except OSError as error:
            raise DataError(f"cannot write {self.path / name}: {error.strerror}") from None

    def _refuse_foreign(self, work: str) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file; name a folder")
        if not self.record.exists() and self._has(work):
            raise DataError(
                f"{self.path} has other files, but no {self.record.name} of a run to resume; choose another folder"
            )

    def _has(self, work: str) -> bool:
        return any(path != self.record and not path.name.startswith(".") for path in self.path.glob(work))
