"""The beginnings of prompts: preamble and constant demonstrations, tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ragalign.packing.joins import Join
from ragalign.packing.pieces import Ids
from ragalign.packing.settings import Packing
from ragalign.templates import Constant, Template
from ragalign.tokenization import Tokenizer
from ragalign.types import UsedDemonstration

# Number of system texts whose beginnings are cached.
_MAX_KEPT = 64


class Beginning(NamedTuple):
    """The part of a prompt that does not depend on the query.

    Attributes:
        texts: the preamble (if any) and the constant demonstrations.
        ids: int32 [n], without special tokens.
        n_preamble_tokens: number of preamble tokens.
        used: the constant demonstrations.
        exact: whether `ids` can be concatenated with the ids of other parts.
    """

    texts: tuple[str, ...]
    ids: Ids
    n_preamble_tokens: int
    used: tuple[UsedDemonstration, ...]
    exact: bool

    @property
    def n_constant_tokens(self) -> int:
        """Tokens of the constant demonstrations."""
        return sum(used.n_tokens for used in self.used)


class Beginnings:
    """Makes the beginnings of prompts and caches the most recent.

    Args:
        template: the prompt's form.
        tokenizer: the model's tokenizer.
        constants: demonstrations that every prompt begins with.

    Attributes:
        join: the join between any part and the next.
        exact: whether ids of parts can be concatenated at all.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer, constants: Sequence[Constant]) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._constants = tuple(constants)
        self._join_after = lru_cache(_MAX_KEPT)(lambda left: Join(tokenizer, left, template.opening))
        self._kept = lru_cache(_MAX_KEPT)(self._make)
        self.join = Join(tokenizer, template.closing, template.opening)
        self.exact = self.join.safe and self._joins("".join(self._texts("", len(self._constants))))

    def get(self, system: str, n_constants: int) -> Beginning:
        """The beginning with this system text and the first `n_constants` constant demonstrations."""
        return self._kept(system, n_constants)

    def n_constants_within(self, packing: Packing) -> int:
        """The number of leading constants within `max_demonstrations` and `max_tokens`."""
        n_constants = min(len(self._constants), packing.max_demonstrations)
        while self.get("", n_constants).n_constant_tokens > packing.max_tokens:
            n_constants -= 1
        return n_constants

    def _texts(self, system: str, n_constants: int) -> tuple[str, ...]:
        preamble = self._template.render_preamble(system)
        return (*filter(None, [preamble]), *(constant.text for constant in self._constants[:n_constants]))

    def _joins(self, whole: str) -> bool:
        """Whether ids can be concatenated at the end of this beginning."""
        return not whole or self._join_after(whole[len(whole.rstrip()) :] or whole[-1]).safe

    def _make(self, system: str, n_constants: int) -> Beginning:
        texts = self._texts(system, n_constants)
        exact = self.exact and self._joins("".join(texts))
        if not any(texts):
            return Beginning((), np.array([], dtype=np.int32), 0, (), exact)
        # If the join is safe, use the ids that the text has before the next part.
        ids, sizes = self._tokenizer.encode_parts((*texts, self._template.opening if exact else ""))
        sizes.pop()
        ids = ids[: sum(sizes)]
        used = [constant.demonstration for constant in self._constants[:n_constants]]
        first = len(texts) - len(used)
        starts = accumulate(sizes[first:], initial=len(self._tokenizer.prefix_ids) + sum(sizes[:first]))
        counted = tuple(
            UsedDemonstration(demonstration.id, demonstration.source_id, None, size, start)
            for demonstration, size, start in zip(used, sizes[first:], starts, strict=False)
        )
        return Beginning(texts, np.array(ids, dtype=np.int32), sum(sizes[:first]), counted, exact)
