"""The planner: plans the prompts of a batch so that they share prefixes.

vLLM caches the key-value blocks of prompts, so a request does not recompute a prefix that it shares with an earlier
request. Constant demonstrations therefore cost almost nothing, while retrieved ones are recomputed for every query. The
planner closes much of this gap without changing the engine: within a floor on relevance, it chooses demonstrations that
other prompts of the batch also have, puts them first in a common order, and sends related prompts one after another.
See `ragalign.planning.exchange` for the choice and `ragalign.planning.sharing` for the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ragalign.errors import BudgetError
from ragalign.packing import Choice, More, Packer, without_collector
from ragalign.planning.batch import CandidateBatch
from ragalign.planning.candidates import others_of
from ragalign.planning.strategies import PlannerSettings, select
from ragalign.types import Hit, Prompt, Turn


@dataclass(frozen=True, slots=True)
class Plan:
    """Prompts in input order, and the order in which to send them.

    Attributes:
        prompts: for each query its prompt, or the error if it does not fit.
        order: positions of the prompts in sending order; those that share most are next to each other.
        relevance: the relevance kept by each query (1 is that of the plain choice), or NaN if it does not fit.
    """

    prompts: list[Prompt | BudgetError]
    order: list[int]
    relevance: list[float]


class Planner:
    """Chooses demonstrations and order across a batch, so that prompts share prefixes.

    Args:
        packer: makes the prompts; its budgets also apply to planned prompts.
        settings: strategy and floor; without them nothing is planned.
    """

    def __init__(self, packer: Packer, settings: PlannerSettings | None = None) -> None:
        self.packer = packer
        self.settings = settings or PlannerSettings()

    @property
    def n_candidates(self) -> int:
        """The number of hits per query that the planner can use, in addition to the plain choice."""
        return self.settings.candidates if self.settings.strategy in ("relax", "backbone", "hybrid") else 0

    def plan(
        self,
        conversations: Sequence[Sequence[Turn]],
        hits: Sequence[Sequence[Hit]],
        *,
        n_plain: int | None = None,
        more: More | None = None,
        max_new_tokens: int = 0,
    ) -> Plan:
        """Plan a batch.

        Args:
            conversations: conversations that end with a user turn.
            hits: the candidates of each, best first; `n_candidates` are enough.
            n_plain: number of hits for the plain choice; None means the packer's `max_demonstrations`.
            more: retrieves more candidates for places that would stay empty.
            max_new_tokens: tokens of the context to reserve for each completion.

        Raises:
            DataError: as `Packer.pack`, for any conversation.
        """
        n_plain = self.packer.packing.max_demonstrations if n_plain is None else n_plain
        if self.settings.strategy == "none":
            packed = self.packer.pack_many(
                conversations, hits, n_plain=n_plain, more=more, max_new_tokens=max_new_tokens
            )
            kept = [1.0 if isinstance(prompt, Prompt) else float("nan") for prompt in packed]
            return Plan(packed, list(range(len(packed))), kept)
        choices = self.packer.choose_many(
            conversations, hits, n_plain=n_plain, more=more, max_new_tokens=max_new_tokens
        )
        prompts: list[Prompt | BudgetError | None] = [None] * len(choices)
        relevance = [float("nan")] * len(choices)
        order: list[int] = []
        with without_collector():
            for positions in self._alike(choices):
                order += self._plan(positions, choices, hits, prompts, relevance)
        return Plan([prompt for prompt in prompts if prompt is not None], order, relevance)

    def _alike(self, choices: Sequence[Choice]) -> list[list[int]]:
        """Group the positions of prompts with the same beginning; only these can share a prefix."""
        groups: dict[tuple[str, int], list[int]] = {}
        for position, choice in enumerate(choices):
            groups.setdefault((choice.system, choice.n_constants), []).append(position)
        return list(groups.values())

    def _plan(
        self,
        positions: Sequence[int],
        choices: Sequence[Choice],
        hits: Sequence[Sequence[Hit]],
        prompts: list[Prompt | BudgetError | None],
        relevance: list[float],
    ) -> list[int]:
        """Plan prompts with the same beginning; returns their positions in planned order."""
        group = [choices[position] for position in positions]
        others = others_of(self.packer, group, [hits[position] for position in positions], self.n_candidates)
        ids = {hit.id for choice, rest in zip(group, others, strict=True) for hit in (*choice.chosen, *rest)}
        batch = CandidateBatch.of(
            [choice.chosen for choice in group],
            others,
            self.packer.token_counts(ids),
            [choice.budget for choice in group],
            n_before=self.packer.n_tokens_before(group[0]),
            block_size=self.settings.block_size,
        )
        selection = select(batch, self.settings)
        used = selection.shared | selection.own
        for row, position in enumerate(positions):
            hit_of = dict(zip(batch.items[row].tolist(), (*group[row].chosen, *others[row]), strict=False))
            own = batch.items[row][selection.own[row]][::-1].tolist()
            ordered = [hit_of[item] for item in (*selection.paths[row], *own)]
            prompt = self._assembled(group[row], ordered)
            if isinstance(prompt, Prompt) and len(prompt.demonstrations) < group[row].n_constants + len(ordered):
                # Some are dropped if the whole has more tokens than its parts.
                kept = {demonstration.id for demonstration in prompt.demonstrations}
                used[row] &= [batch.ids[item] in kept for item in batch.items[row].tolist()]
            prompts[position] = prompt
        for row, kept_by in enumerate(batch.relevance(used).tolist()):
            if isinstance(prompts[positions[row]], Prompt):
                relevance[positions[row]] = kept_by
        return [positions[row] for row in selection.order]

    def _assembled(self, choice: Choice, ordered: Sequence[Hit]) -> Prompt | BudgetError:
        try:
            return self.packer.assemble(choice, ordered)
        except BudgetError as error:
            return error
