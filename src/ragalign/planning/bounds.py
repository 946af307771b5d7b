"""Lower bounds of the prefill cost of a batch, for given demonstrations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ragalign.types import Prompt


def reuse_bound(prompts: Sequence[Prompt]) -> float:
    """Tokens prefilled per request if an engine could reuse a demonstration at any position.

    Each demonstration and preamble is computed once, each conversation separately. Engines cannot do this without
    modification.
    """
    if not prompts:
        return 0.0
    once: dict[str, int] = {}
    total = 0
    for prompt in prompts:
        preamble = prompt.pieces[0] if prompt.n_preamble_tokens else ""
        once[f"\n{preamble}"] = prompt.n_special_tokens + prompt.n_preamble_tokens
        once.update((used.id, used.n_tokens) for used in prompt.demonstrations)
        total += prompt.n_query_tokens
    return (total + sum(once.values())) / len(prompts)


def prefix_bound(prompts: Sequence[Prompt]) -> float:
    """A lower bound on tokens prefilled per request with prefix caching, for any order of demonstrations and requests.

    A prompt shares its prefix with one earlier prompt, and at most the demonstrations that both have. These pairs form
    a forest, so a maximum spanning tree of the overlaps (Prim, 1957) is an upper bound on savings. Counts whole
    demonstrations; takes time quadratic in the number of prompts.
    """
    if not prompts:
        return 0.0
    holders: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        for used in prompt.demonstrations:
            holders.setdefault(used.id, []).append(row)
    rows_of = {id_: np.array(rows) for id_, rows in holders.items()}
    before = np.array([prompt.n_special_tokens + prompt.n_preamble_tokens for prompt in prompts])
    best = np.full(len(prompts), -1)
    waiting = np.ones(len(prompts), dtype=np.bool_)
    row, saved = 0, 0
    for _ in range(len(prompts) - 1):
        waiting[row] = False
        overlap = np.minimum(before, before[row])
        for used in prompts[row].demonstrations:
            overlap[rows_of[used.id]] += used.n_tokens
        np.maximum(best, overlap, out=best)
        row = int(np.where(waiting, best, -1).argmax())
        saved += int(best[row])
    return (sum(len(prompt.ids) for prompt in prompts) - saved) / len(prompts)
