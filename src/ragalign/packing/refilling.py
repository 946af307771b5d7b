"""More candidates for prompts in which some did not fit."""

from __future__ import annotations

from collections.abc import Sequence

from ragalign.packing.choosing import More
from ragalign.types import Hit

# Each refill step retrieves this many times more candidates.
GROWTH = 4
# Maximum number of candidates to try for a prompt that has few tokens left.
MOST_WHEN_TIGHT = 1024


def deeper(
    short: Sequence[int],
    seen: Sequence[Sequence[Hit]],
    hits: Sequence[Sequence[Hit]],
    depth: int,
    more: More | None,
) -> dict[int, Sequence[Hit]]:
    """Candidates down to `depth` for the positions in `short`, except those with no more candidates."""
    there = {position: hits[position][:depth] for position in short if len(hits[position]) > len(seen[position])}
    asked = [position for position in short if position not in there]
    if asked and more is not None:
        there.update(zip(asked, more(asked, depth), strict=True))
    return {position: found for position, found in there.items() if len(found) > len(seen[position])}
