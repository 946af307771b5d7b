"""Log-probabilities of given tokens with transformers: a beginning that sequences share is computed once."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Copying a shorter beginning's keys and values costs as much as computing them.
MIN_SHARED = 24


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with the same beginning.

    Attributes:
        members: positions of the sequences.
        n_shared: tokens of the beginning that is computed once; 0 if nothing is shared.
    """

    members: tuple[int, ...]
    n_shared: int


def group_by_beginning(sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Group]:
    """Group sequences so that most of their tokens are shared.

    Args:
        sequences: token ids.
        starts: the first position of each sequence whose probability is wanted; the token before it is never shared,
            since its output is needed.
    """
    groups: list[Group] = []
    members: list[int] = []
    shared = 0
    for place in sorted(range(len(sequences)), key=lambda place: list(sequences[place])):
        if members:
            common = min(shared, starts[place] - 1, _n_common(sequences[members[-1]], sequences[place]))
            # Join as long as the group shares more tokens with this member than without it.
            if common >= MIN_SHARED and len(members) * common >= (len(members) - 1) * shared:
                members.append(place)
                shared = common
                continue
            groups.append(_group(members, shared))
        members, shared = [place], starts[place] - 1
    return [*groups, _group(members, shared)] if members else groups


def token_logprobs(
    model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_size: int
) -> Generator[tuple[int, NDArray[np.float32]], None, None]:
    """See `ragalign.generation.BaseGenerator.token_logprobs`; `model` is a causal language model in transformers."""
    alone: list[int] = []
    for group in group_by_beginning(sequences, starts):
        cache = _beginning(model, sequences[group.members[0]][: group.n_shared]) if group.n_shared else None
        if cache is None:
            alone += group.members
            continue
        for batch in _batches(group.members, sequences, starts, batch_size):
            copied = copy.deepcopy(cache)
            copied.batch_repeat_interleave(len(batch))
            yield from _run(model, sequences, starts, batch, group.n_shared, copied)
    for batch in _batches(alone, sequences, starts, batch_size):
        yield from _run(model, sequences, starts, batch, 0, None)


def _group(members: Sequence[int], shared: int) -> Group:
    return Group(tuple(members), shared if len(members) > 1 else 0)


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    n = min(len(one), len(other))
    differ = np.flatnonzero(np.asarray(one[:n]) != np.asarray(other[:n]))
    return int(differ[0]) if len(differ) else n


def _batches(
    members: Sequence[int], sequences: Sequence[Sequence[int]], starts: Sequence[int], size: int
) -> Iterator[list[int]]:
    """Batches of similar starts and lengths, since all rows of a batch compute the same positions."""
    ordered = sorted(members, key=lambda place: (starts[place], len(sequences[place])))
    for first in range(0, len(ordered), size):
        yield ordered[first : first + size]


def _beginning(model: Any, ids: Sequence[int]) -> Any:
    """The keys and values of a beginning; None for models whose cache cannot be repeated."""
    import torch
    from transformers import DynamicCache

    cache = model(torch.tensor([list(ids)], device=model.device), use_cache=True, logits_to_keep=1).past_key_values
    return cache if type(cache) is DynamicCache else None


def _run(
    model: Any,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch: Sequence[int],
    n_shared: int,
    cache: Any,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Run what follows the shared beginning, padded on the right, where causal attention never looks."""
    import torch

    rests = [list(sequences[place][n_shared:]) for place in batch]
    ids = torch.zeros((len(batch), max(map(len, rests))), dtype=torch.long)
    for row, rest in enumerate(rests):
        ids[row, : len(rest)] = torch.tensor(rest)
    first = min(starts[place] for place in batch) - n_shared - 1
    kept = torch.arange(first, ids.shape[1] - 1, device=model.device)
    ids = ids.to(model.device)
    options = {"past_key_values": cache} if cache is not None else {}
    logits = model(ids, logits_to_keep=kept, use_cache=cache is not None, **options).logits
    for row, place in enumerate(batch):
        start = starts[place] - n_shared
        end = len(rests[row])
        own = logits[row, start - 1 - first : end - 1 - first].float()
        wanted = ids[row, start:end, None]
        yield place, (own.gather(1, wanted)[:, 0] - own.logsumexp(-1)).cpu().numpy()
