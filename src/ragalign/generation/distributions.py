"""A model's expectations at given positions: log-probabilities, ranks, and the most probable tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ragalign.types import Generator

# Ranks 1 to 3 must be told apart even where probabilities tie.
MIN_TOP_K = 3


@dataclass(frozen=True, slots=True, eq=False)
class Distributions:
    """A model's expectations at `t` positions of a sequence. Logarithms are natural.

    Attributes:
        ids: int32 [t], the tokens at these positions.
        logprobs: float32 [t], of these tokens.
        ranks: int32 [t], of these tokens: one more than the number of tokens that are more probable.
        top_ids: int32 [t, k], the most probable tokens, best first; [t, 0] where `dense` holds everything.
        top_logprobs: float32 [t, k].
        dense: float32 [t, v], of the whole vocabulary; None where only the top is known.
    """

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    top_ids: NDArray[np.int32]
    top_logprobs: NDArray[np.float32]
    dense: NDArray[np.float32] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.ids)

    def best(self, position: int, n: int) -> list[tuple[int, float]]:
        """The `n` most probable tokens at a position with their log-probabilities, best first."""
        if self.dense is None:
            ids, logprobs = self.top_ids[position, :n], self.top_logprobs[position, :n]
        else:
            row = self.dense[position]
            n = min(n, len(row))
            ids = np.argpartition(-row, n - 1)[:n].astype(np.int32)
            ids = ids[np.argsort(-row[ids], kind="stable")]
            logprobs = row[ids]
        return [(int(id_), float(value)) for id_, value in zip(ids, logprobs, strict=True)]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, to be stored with `numpy.savez` and given back to this class."""
        found = {name: getattr(self, name) for name in ("ids", "logprobs", "ranks", "top_ids", "top_logprobs")}
        return found if self.dense is None else found | {"dense": self.dense}


class SupportsDistributions(Generator, Protocol):
    """A generator that also says how likely given tokens are."""

    def distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, top_k: int | None = None
    ) -> Iterator[tuple[int, Distributions]]:
        """See `ragalign.generation.BaseGenerator.distributions`."""


def from_dense(dense: NDArray[np.float32], ids: Sequence[int]) -> Distributions:
    """From log-probabilities of the whole vocabulary, float32 [t, v], and the tokens at these positions."""
    tokens = np.asarray(ids, dtype=np.int32)
    logprobs = np.take_along_axis(dense, tokens[:, None].astype(np.int64), axis=1)[:, 0]
    ranks = 1 + (dense > logprobs[:, None]).sum(axis=1, dtype=np.int32)
    empty = np.empty((len(tokens), 0))
    return Distributions(tokens, logprobs, ranks, empty.astype(np.int32), empty.astype(np.float32), dense)


def from_top(
    ids: Sequence[int],
    logprobs: NDArray[np.float32],
    ranks: NDArray[np.int32],
    top_ids: NDArray[np.int32],
    top_logprobs: NDArray[np.float32],
) -> Distributions:
    """From the most probable tokens [t, k], best first, and the log-probabilities and ranks of the actual ones.

    Engines count ties in different ways; where a token is among the top, its rank is counted again.
    """
    inside = logprobs >= top_logprobs[:, -1]
    counted = 1 + (top_logprobs > logprobs[:, None]).sum(axis=1, dtype=np.int32)
    ranks = np.where(inside, counted, ranks).astype(np.int32)
    return Distributions(np.asarray(ids, dtype=np.int32), logprobs, ranks, top_ids, top_logprobs)


def from_tensor(logprobs: Any, ids: Sequence[int], top_k: int | None) -> Distributions:
    """From a torch tensor of log-probabilities, float32 [t, v], on any device."""
    if top_k is None or top_k >= logprobs.shape[-1]:
        return from_dense(logprobs.cpu().numpy(), ids)
    import torch

    tokens = torch.tensor(list(ids), device=logprobs.device, dtype=torch.long)
    own = logprobs.gather(1, tokens[:, None])
    ranks = 1 + (logprobs > own).sum(1)
    top, top_ids = logprobs.topk(top_k, dim=-1)
    return from_top(
        ids,
        own[:, 0].cpu().numpy(),
        ranks.cpu().numpy().astype(np.int32),
        top_ids.cpu().numpy().astype(np.int32),
        top.cpu().numpy(),
    )


def from_flat(flat: Any, ids: Sequence[int], start: int, *, full: bool) -> Distributions:
    """From vLLM's flat prompt log-probabilities: per position the actual token, then the top ones."""
    tokens = np.asarray(flat.token_ids, dtype=np.int32)
    values = np.asarray(flat.logprobs, dtype=np.float32)
    # From the end: of a prompt whose beginning was cached the engine tells nothing there.
    begins, ends = flat.start_indices[start - len(ids) :], flat.end_indices[start - len(ids) :]
    # Every position but the first of a prompt has as many entries, and those wanted are its last.
    rows, width = len(begins), ends[0] - begins[0]
    tokens, values = tokens[begins[0] :].reshape(rows, width), values[begins[0] :].reshape(rows, width)
    shown = list(ids[start:])
    if full:
        dense = np.empty((rows, width - 1), dtype=np.float32)
        np.put_along_axis(dense, tokens[:, 1:].astype(np.int64), values[:, 1:], axis=1)
        return from_dense(dense, shown)
    ranks = np.array([flat.ranks[begin] for begin in begins], dtype=np.int32)
    return from_top(shown, values[:, 0], ranks, tokens[:, 1:], values[:, 1:])
