"""Rendered and tokenised demonstrations, each made once: in memory, and on disk beside the index."""

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

# Tokenised demonstrations kept in memory; at 300 tokens each some 700 MB at worst.
_MAX_IN_MEMORY = 65_536
# Texts tokenised at a time: what a tokenizer returns takes some hundred bytes per token until its ids are taken out.
_TOGETHER = 1024


class Piece(NamedTuple):
    """A demonstration's text in the prompt and its ids: after another part, and at the start of the prompt.

    The lengths are kept beside the arrays: asking an array for its own takes longer than all else in a choice.
    """

    text: str
    source_id: str | None
    ids: Ids
    start_ids: Ids
    n_tokens: int
    most_tokens: int


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

    def load(self, ids: Collection[str], get: Callable[[str], Demonstration]) -> Mapping[str, Piece]:
        """The pieces of the demonstrations `ids`, among others; `get` is called for those not known yet."""
        # Threads share a packer: each keeps the dictionary that it began with, to which pieces are only added.
        known = self._known
        missing = [id_ for id_ in ids if id_ not in known]
        if missing:
            if len(known) + len(missing) > _MAX_IN_MEMORY:
                known = {id_: known[id_] for id_ in ids if id_ in known}
            known.update(self._make([get(id_) for id_ in missing]))
            self._known = known
        return known

    def _make(self, demonstrations: list[Demonstration]) -> dict[str, Piece]:
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
            pieces[demonstration.id] = Piece(text, demonstration.source_id, ids, start_ids, *lengths)
        return pieces


class TokenStore:
    """Ids of texts on disk: one file per template and tokenizer; see `ragalign.cache` for what happens to damage."""

    def __init__(self, path: Path) -> None:
        self._cache = Cache(path, "token cache")

    def get(self, texts: Iterable[str]) -> dict[str, tuple[Ids, Ids]]:
        """The known ones among `texts`."""
        keys = {_key(text): text for text in texts}
        found = {}
        for key, value in self._cache.get(list(keys)).items():
            # The number of the first ids, then both.
            both = np.frombuffer(value, dtype="<i4").astype(np.int32)
            n = int(both[0])
            found[keys[key]] = (both[1 : n + 1], both[n + 1 :])
        return found

    def put(self, entries: Mapping[str, tuple[Ids, Ids]]) -> None:
        """Add texts; where the disk does not let us, they are known in memory only."""
        self._cache.put({
            _key(text): np.concatenate(([len(ids)], ids, start_ids)).astype("<i4").tobytes()
            for text, (ids, start_ids) in entries.items()
        })  # fmt: skip


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
