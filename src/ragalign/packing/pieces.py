"""Rendered and tokenised demonstrations, each made once: in memory, and on disk beside the index."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ragalign.types import Demonstration

Ids = NDArray[np.int32]

# Tokenised demonstrations kept in memory; at 300 tokens each some 700 MB at worst.
_MAX_IN_MEMORY = 65_536
# SQLite's limit on the parameters of one statement is 999 in old builds.
_MAX_PARAMETERS = 900


class Piece(NamedTuple):
    """A demonstration's text in the prompt and its ids: behind another part, and at the start of the prompt."""

    text: str
    source_id: str | None
    ids: Ids
    start_ids: Ids


class Pieces:
    """Makes pieces and remembers them.

    Args:
        render: a demonstration's text.
        encode: (ids, ids at the start of a prompt) for each of several texts.
        store: where ids are kept between runs.
    """

    def __init__(
        self,
        render: Callable[[Demonstration], str],
        encode: Callable[[Sequence[str]], list[tuple[Ids, Ids]]],
        store: TokenStore | None,
    ) -> None:
        self._render = render
        self._encode = encode
        self._store = store
        self._known: dict[str, Piece] = {}

    def load(self, ids: Collection[str], get: Callable[[str], Demonstration]) -> dict[str, Piece]:
        """The pieces of the demonstrations `ids`, among others; `get` is called for those not known yet."""
        missing = [id_ for id_ in ids if id_ not in self._known]
        if missing:
            if len(self._known) + len(missing) > _MAX_IN_MEMORY:
                self._known = {id_: self._known[id_] for id_ in ids if id_ in self._known}
            self._known |= self._make([get(id_) for id_ in missing])
        return self._known

    def _make(self, demonstrations: list[Demonstration]) -> dict[str, Piece]:
        texts = {demonstration.id: self._render(demonstration) for demonstration in demonstrations}
        found = self._store.get(texts) if self._store else {}
        new = [id_ for id_ in texts if id_ not in found]
        made = dict(zip(new, self._encode([texts[id_] for id_ in new]), strict=True)) if new else {}
        if made and self._store:
            self._store.put(made)
        found |= made
        return {d.id: Piece(texts[d.id], d.source_id, *found[d.id]) for d in demonstrations}


class TokenStore:
    """Ids on disk: one SQLite file per template and tokenizer.

    It is a cache: whatever is wrong with the file, entries count as missing and are made again. Every entry
    carries a CRC-32, so that a damaged one is not used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()

    def get(self, ids: Iterable[str]) -> dict[str, tuple[Ids, Ids]]:
        """What is known of the demonstrations `ids`."""
        wanted = list(ids)
        found: dict[str, tuple[Ids, Ids]] = {}
        if not self._path.is_file():
            return found
        try:
            with self._lock, closing(sqlite3.connect(self._path)) as database:
                for start in range(0, len(wanted), _MAX_PARAMETERS):
                    part = wanted[start : start + _MAX_PARAMETERS]
                    marks = ",".join("?" * len(part))
                    rows = database.execute(f"SELECT id, n, ids, crc FROM tokens WHERE id IN ({marks})", part)
                    for id_, n, blob, crc in rows:
                        if zlib.crc32(blob) == crc:
                            both = np.frombuffer(blob, dtype="<i4").astype(np.int32)
                            found[id_] = (both[:n], both[n:])
        except (sqlite3.Error, TypeError, ValueError):
            return {}
        return found

    def put(self, entries: dict[str, tuple[Ids, Ids]]) -> None:
        """Add entries; where the disk does not let us, they stay in memory only."""
        rows = []
        for id_, (ids, start_ids) in entries.items():
            blob = np.concatenate((ids, start_ids)).astype("<i4").tobytes()
            rows.append((id_, len(ids), blob, zlib.crc32(blob)))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, closing(sqlite3.connect(self._path)) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS tokens (id TEXT PRIMARY KEY, n INTEGER, ids BLOB, crc INTEGER)"
                )
                database.executemany("INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)", rows)
        except (sqlite3.Error, OSError):
            return
