"""A cache of rendered and tokenised demonstrations, in memory and on disk beside the index."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ragalign.cache import Cache
from ragalign.types import Demonstration

Ids = NDArray[np.int32]

# Maximum number of tokenised demonstrations in memory, about 700 MB at 300 tokens each.
_MAX_IN_MEMORY = 65_536
# Texts tokenised at once: the tokenizer's result takes some hundred bytes per token until the ids are extracted.
_TOGETHER = 1024


class DemonstrationTokens(NamedTuple):
    """A demonstration's text in the prompt and its ids: after another part, and at the start of the prompt.

    The lengths are stored too: getting them from the arrays would take longer than the rest of choosing.
    """

    text: str
    source_id: str | None
    ids: Ids
    start_ids: Ids
    n_tokens: int
    most_tokens: int


class Pieces:
    """Makes pieces and caches them.

    Args:
        render: renders a demonstration.
        encode: returns (ids, ids at the start of a prompt) for each text.
        store: the ids on disk.
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
        self._known: dict[str, DemonstrationTokens] = {}

    def load(self, ids: Collection[str], get: Callable[[str], Demonstration]) -> Mapping[str, DemonstrationTokens]:
        """Return the pieces of the demonstrations `ids` (and others), calling `get` for those not cached."""
        # Threads share a packer. Each keeps the dictionary that it started with, to which pieces are only added.
        known = self._known
        missing = [id_ for id_ in ids if id_ not in known]
        if missing:
            if len(known) + len(missing) > _MAX_IN_MEMORY:
                known = {id_: known[id_] for id_ in ids if id_ in known}
            known.update(self._make([get(id_) for id_ in missing]))
            self._known = known
        return known

    def _make(self, demonstrations: list[Demonstration]) -> dict[str, DemonstrationTokens]:
        texts = [self._render(demonstration) for demonstration in demonstrations]
        found = self._store.get(texts) if self._store else {}
        new = [text for text in texts if text not in found]
        for start in range(0, len(new), _TOGETHER):
            some = new[start : start + _TOGETHER]
            made = dict(zip(some, self._encode(some), strict=True))
            if self._store:
                self._store.put(made)
            found |= made
        pieces = {}
        for demonstration, text in zip(demonstrations, texts, strict=True):
            ids, start_ids = found[text]
            lengths = len(ids), max(len(ids), len(start_ids))
            pieces[demonstration.id] = DemonstrationTokens(text, demonstration.source_id, ids, start_ids, *lengths)
        return pieces


class TokenStore:
    """Ids of texts on disk, one file per template and tokenizer; see `ragalign.cache` for damaged files."""

    def __init__(self, path: Path) -> None:
        self._cache = Cache(path, "token cache")

    def get(self, texts: Iterable[str]) -> dict[str, tuple[Ids, Ids]]:
        """Return the ids of those `texts` that are stored."""
        keys = {_key(text): text for text in texts}
        found = {}
        for key, value in self._cache.get(list(keys)).items():
            # Format: the number of ids in the first array, then both arrays.
            both = np.frombuffer(value, dtype="<i4").astype(np.int32)
            n = int(both[0])
            found[keys[key]] = (both[1 : n + 1], both[n + 1 :])
        return found

    def put(self, entries: Mapping[str, tuple[Ids, Ids]]) -> None:
        """Add texts; if the file cannot be written, they stay in memory only."""
        self._cache.put({
            _key(text): np.concatenate(([len(ids)], ids, start_ids)).astype("<i4").tobytes()
            for text, (ids, start_ids) in entries.items()
        })  # fmt: skip


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
