"""A model's predictions at given positions: log-probabilities, ranks, and the most probable tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ragalign.generator import Generator
from ragalign.types import Prompt

# Ranks 1 to 3 must be distinguished even if probabilities tie.
MIN_TOP_K = 3


@dataclass(frozen=True, slots=True, eq=False)
class Distributions:
    """A model's predictions at `t` positions of a sequence. Logarithms are natural.

    Attributes:
        ids: int32 [t], the tokens at these positions.
        logprobs: float32 [t], their log-probabilities.
        ranks: int32 [t], their ranks: the number of more probable tokens plus one.
        top_ids: int32 [t, k], the most probable tokens, best first; [t, 0] if `dense` is set.
        top_logprobs: float32 [t, k], their log-probabilities.
        dense: float32 [t, v], log-probabilities of the whole vocabulary; None if only the top is known.
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
        """The arrays by name, for `numpy.savez`; they are also the arguments of this class."""
        found = {name: getattr(self, name) for name in ("ids", "logprobs", "ranks", "top_ids", "top_logprobs")}
        return found if self.dense is None else found | {"dense": self.dense}


class SupportsDistributions(Generator, Protocol):
    """A generator that also computes probabilities of given tokens."""

    def distributions(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int], *, top_k: int | None = None
    ) -> Iterator[tuple[int, Distributions]]:
        """See `ragalign.generation.BaseGenerator.distributions`."""

    def token_logprobs(
        self, sequences: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """See `ragalign.generation.BaseGenerator.token_logprobs`."""


@runtime_checkable
class SupportsReuse(Protocol):
    """A generator that also computes probabilities of answers to prompts whose demonstrations are reused."""

    def continuations(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], *, top_k: int
    ) -> Iterator[tuple[int, Distributions, int]]:
        """See `ragalign.generation.VllmGenerator.continuations`."""


def from_dense(dense: NDArray[np.float32], ids: Sequence[int]) -> Distributions:
    """Make distributions from log-probabilities of the whole vocabulary, float32 [t, v], and the actual tokens."""
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
    """Make distributions from the most probable tokens [t, k], best first, and the actual tokens' values.

    Engines count ties differently, so the rank of a token among the top is counted again here.
    """
    inside = logprobs >= top_logprobs[:, -1]
    counted = 1 + (top_logprobs > logprobs[:, None]).sum(axis=1, dtype=np.int32)
    ranks = np.where(inside, counted, ranks).astype(np.int32)
    return Distributions(np.asarray(ids, dtype=np.int32), logprobs, ranks, top_ids, top_logprobs)


def from_tensor(logprobs: Any, ids: Sequence[int], top_k: int | None) -> Distributions:
    """Make distributions from a torch tensor of log-probabilities, float32 [t, v], on any device."""
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
    """Make distributions from vLLM's flat prompt log-probabilities: per position the actual token, then the top."""
    tokens = np.asarray(flat.token_ids, dtype=np.int32)
    values = np.asarray(flat.logprobs, dtype=np.float32)
    # Count from the end: the engine reports nothing for the cached beginning of a prompt.
    begins, ends = flat.start_indices[start - len(ids) :], flat.end_indices[start - len(ids) :]
    # All positions but the first have equally many entries, and the last positions are the wanted ones.
    rows, width = len(begins), ends[0] - begins[0]
    tokens, values = tokens[begins[0] :].reshape(rows, width), values[begins[0] :].reshape(rows, width)
    shown = list(ids[start:])
    if full:
        dense = np.empty((rows, width - 1), dtype=np.float32)
        np.put_along_axis(dense, tokens[:, 1:].astype(np.int64), values[:, 1:], axis=1)
        return from_dense(dense, shown)
    ranks = np.array([flat.ranks[begin] for begin in begins], dtype=np.int32)
    return from_top(shown, values[:, 0], ranks, tokens[:, 1:], values[:, 1:])
