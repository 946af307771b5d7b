"""Candidates for a prompt beyond the plain choice."""

from __future__ import annotations

from collections.abc import Sequence

from ragalign.packing import Choice, Packer
from ragalign.types import Hit


def others_of(
    packer: Packer, choices: Sequence[Choice], hits: Sequence[Sequence[Hit]], n_candidates: int
) -> list[list[Hit]]:
    """For each query, those of the first `n_candidates` hits that are short enough and not chosen, best first.

    Constant demonstrations, which are in every prompt, are left out.
    """
    counts = packer.token_counts({hit.id for found in hits for hit in found[:n_candidates]})
    most = packer.packing.max_demonstration_tokens
    never = {id_ for id_, n_tokens in counts.items() if n_tokens > most}
    never |= {constant.demonstration.id for constant in packer.constants}
    found = []
    for choice, mine in zip(choices, hits, strict=True):
        seen = {hit.id for hit in choice.chosen} | never
        found.append([hit for hit in mine[:n_candidates] if hit.id not in seen])
    return found
