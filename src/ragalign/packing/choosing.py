"""Choosing the candidates that go into a prompt, with a reason for each that does not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ragalign.packing.beginnings import Beginning, Beginnings
from ragalign.packing.pieces import DemonstrationTokens
from ragalign.packing.settings import Packing
from ragalign.types import DroppedDemonstration, DropReason, Hit

# Retrieves more candidates: (positions of conversations, k) -> the best k hits of each.
More = Callable[[Sequence[int], int], Sequence[Sequence[Hit]]]


@dataclass(frozen=True, slots=True)
class Choice:
    """The demonstrations chosen for one prompt, before it is assembled.

    Attributes:
        chosen: the chosen candidates, best first.
        dropped: the other candidates, each with a reason.
        budget: maximum tokens of all retrieved demonstrations together.
        system: the text of the system turns.
        n_constants: number of constant demonstrations in the prompt.
        query_text, query_ids: the rendered conversation and its ids.
        max_new_tokens: tokens reserved for the completion.
        n_missing: number of places left for further candidates.
        is_tight: whether a candidate was skipped because few tokens were left.
    """

    chosen: list[Hit]
    dropped: list[DroppedDemonstration]
    budget: int
    system: str
    n_constants: int
    query_text: str
    query_ids: list[int]
    max_new_tokens: int
    n_missing: int = 0
    is_tight: bool = False


class Chooser:
    """Chooses candidates within the limits of a packing.

    Args:
        packing: the limits.
        beginnings: the beginnings of prompts.
        never: ids of demonstrations never to choose: the constant ones.
        n_special_tokens: special tokens that the tokenizer adds to a prompt.
        context_length: maximum tokens of prompt and completion together; None for no limit.
    """

    def __init__(
        self,
        packing: Packing,
        beginnings: Beginnings,
        never: Collection[str],
        *,
        n_special_tokens: int,
        context_length: int | None,
    ) -> None:
        self._packing = packing
        self._beginnings = beginnings
        self._never = frozenset(never)
        self._n_special_tokens = n_special_tokens
        self._context_length = context_length
        self._n_constants = beginnings.n_constants_within(packing)

    @property
    def n_constants(self) -> int:
        """The number of constant demonstrations that prompts begin with, if the context has room."""
        return self._n_constants

    def choose(
        self,
        hits: Sequence[Hit],
        pieces: Mapping[str, DemonstrationTokens],
        n_plain: int | None,
        *,
        system: str,
        query_text: str,
        query_ids: list[int],
        max_new_tokens: int,
    ) -> Choice:
        """Choose from `hits` for one conversation.

        Args:
            hits: the candidates, best first.
            pieces: the pieces of their demonstrations.
            n_plain: number of candidates retrieved at first. At most this many demonstrations are chosen; later
                candidates replace skipped ones, and are listed as dropped only if skipped. None means all of `hits`.
            system: the text of the system turns.
            query_text: the rendered conversation.
            query_ids: the ids of the rendered conversation.
            max_new_tokens: tokens to reserve for the completion.
        """
        beginning, room = self._fit_beginning(system, len(query_ids), max_new_tokens)
        packing = self._packing
        budget = packing.max_tokens - beginning.n_constant_tokens
        most = min(budget, room)
        n_plain = len(hits) if n_plain is None else n_plain
        places = min(packing.max_demonstrations - len(beginning.used), n_plain)
        at_start = not len(beginning.ids)
        chosen: list[Hit] = []
        dropped: list[DroppedDemonstration] = []
        stopped = tight = False
        n_listed = 0
        seen = set(self._never)
        for number, hit in enumerate(hits):
            full = stopped or len(chosen) >= places
            if full and number >= n_plain:
                break
            if hit.id in seen:
                continue
            seen.add(hit.id)
            piece = pieces[hit.id]
            # Any demonstration can come first in the prompt, where its ids can differ.
            cost = piece.most_tokens if at_start else piece.n_tokens
            reason: DropReason
            if full:
                reason = "stopped"
            elif cost > packing.max_demonstration_tokens:
                reason = "too_long"
            elif cost > budget or cost > room:
                reason = "budget" if cost > budget else "context"
                stopped = packing.when_full == "stop"
                tight = True
            else:
                budget -= cost
                room -= cost
                chosen.append(hit)
                n_listed = len(dropped)
                continue
            dropped.append(DroppedDemonstration(hit.id, piece.source_id, hit.score, piece.n_tokens, reason))
            if number < n_plain:
                n_listed = len(dropped)
        del dropped[n_listed:]
        missing = 0 if stopped or min(budget, room) <= 0 else max(places - len(chosen), 0)
        return Choice(
            chosen, dropped, most, system, len(beginning.used), query_text, query_ids, max_new_tokens, missing, tight
        )

    def _fit_beginning(self, system: str, n_query_tokens: int, max_new_tokens: int) -> tuple[Beginning, int]:
        """The beginning with as many constants as fit the context, and the tokens left."""
        n_constants = self._n_constants
        while True:
            beginning = self._beginnings.get(system, n_constants)
            if self._context_length is None:
                return beginning, self._packing.max_tokens
            n_fixed = self._n_special_tokens + len(beginning.ids) + n_query_tokens
            room = self._context_length - max_new_tokens - n_fixed
            if room >= 0 or n_constants == 0:
                return beginning, room
            n_constants -= 1
