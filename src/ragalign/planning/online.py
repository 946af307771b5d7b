"""Planning for servers, one request at a time: steering each prompt towards cached prefixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ragalign.packing import Choice, More, Packer
from ragalign.planning.batch import discounts
from ragalign.planning.candidates import others_of
from ragalign.planning.prefix_memory import Node, PrefixMemory, PromptPart
from ragalign.planning.strategies import PlannerSettings
from ragalign.types import Hit, Prompt, Turn

# Limits of the search, since the request waits for it: nodes to visit, and new demonstrations to try at each, most
# similar first.
_VISITS = 100
_NEWCOMERS = 6


class OnlinePlanner:
    """Packs prompts one at a time, so that they begin like earlier ones if that costs little relevance.

    `pack` takes the same arguments as that of `Packer`. The floor applies to each prompt, since later requests are
    unknown. The strategy ``none`` does not plan, ``reorder`` keeps the plain choice, and the others can exchange
    demonstrations.

    Args:
        packer: makes the prompts.
        settings: strategy, floor and number of pinned demonstrations.
        memory: an estimate of the engine's cache; share it between planners with the same engine.
    """

    def __init__(self, packer: Packer, settings: PlannerSettings, memory: PrefixMemory | None = None) -> None:
        self.packer = packer
        self.settings = settings
        self.memory = memory or PrefixMemory()

    def pack(
        self,
        turns: Sequence[Turn],
        hits: Sequence[Hit],
        *,
        n_plain: int | None = None,
        more: More | None = None,
        max_new_tokens: int = 0,
        keeps: bool = True,
    ) -> Prompt:
        """Pack one prompt, and record it as sent.

        Args:
            turns: the conversation. If its previous user turn was packed here, it keeps its demonstrations.
            hits: candidates, best first.
            n_plain: number of hits for the plain choice; None means the packer's `max_demonstrations`.
            more: retrieves more candidates for places that would stay empty.
            max_new_tokens: tokens of the context to reserve for the completion.
            keeps: False chooses new demonstrations for a known conversation, for example after a change of topic.

        Raises:
            BudgetError, DataError: as `Packer.pack`.
        """
        n_plain = self.packer.packing.max_demonstrations if n_plain is None else n_plain
        [choice] = self.packer.choose_many([turns], [hits], n_plain=n_plain, more=more, max_new_tokens=max_new_tokens)
        if self.settings.strategy == "none":
            return self.packer.finish(choice)
        with self.memory.lock:
            ordered = self.memory.recall(self.packer.pool.fingerprint, turns) if keeps else None
            if ordered is None:
                ordered = self._ordered(choice, hits)
            prompt = self.packer.assemble(choice, ordered)
            self.memory.add(self._parts(prompt))
            kept = {used.id for used in prompt.demonstrations}
            self.memory.remember(self.packer.pool.fingerprint, turns, [hit for hit in ordered if hit.id in kept])
        return prompt

    def learn(self, prompt: Prompt, n_cached_tokens: int | None) -> None:
        """Correct the estimate with the number of cached tokens that the engine reports; None is ignored."""
        if n_cached_tokens is not None and self.settings.strategy != "none":
            with self.memory.lock:
                self.memory.correct(self._parts(prompt), n_cached_tokens, self.settings.block_size)

    def _parts(self, prompt: Prompt) -> list[PromptPart]:
        """The parts of a prompt. The first part is everything before the retrieved demonstrations."""
        constants = [used for used in prompt.demonstrations if used.score is None]
        retrieved = [PromptPart(used.id, used.n_tokens) for used in prompt.demonstrations[len(constants) :]]
        n_tokens = prompt.n_special_tokens + prompt.n_preamble_tokens + sum(used.n_tokens for used in constants)
        preamble = prompt.pieces[0] if prompt.n_preamble_tokens else ""
        beginning = (self.packer.template.fingerprint, self.packer.tokenizer.fingerprint, preamble)
        return [PromptPart("\n".join([*beginning, *(used.id for used in constants)]), n_tokens), *retrieved]

    def _ordered(self, choice: Choice, hits: Sequence[Hit]) -> list[Hit]:
        settings = self.settings
        personal, free = choice.chosen[: settings.personal], choice.chosen[settings.personal :]
        others: list[Hit] = []
        if settings.strategy != "reorder" and free:
            [others] = others_of(self.packer, [choice], [hits], settings.candidates)
        counts = self.packer.token_counts({hit.id for hit in (*choice.chosen, *others)})
        search = _Search(choice, personal, others, counts, settings)
        beginning = self._parts(self.packer.assemble(choice, ()))
        run, rest = search.best(self.memory.find(beginning), free)
        # Demonstrations that are cached in many places go first, so that later prompts can begin with them.
        rest = sorted(rest, key=lambda hit: (-self.memory.n_holders(hit.id), -hit.rank))
        return [*run, *rest, *reversed(personal)]


@dataclass(frozen=True, slots=True)
class _Found:
    n_cached: int
    loss: float
    run: tuple[Hit, ...]
    rest: tuple[Hit, ...]


class _Search:
    """A search for the longest run in the trie that a prompt can begin with."""

    def __init__(
        self, choice: Choice, personal: list[Hit], others: list[Hit], counts: dict[str, int], settings: PlannerSettings
    ) -> None:
        self._budget = choice.budget
        self._personal = personal
        self._others = {hit.id: hit for hit in others}
        self._counts = counts
        self._settings = settings
        self._weights: list[float] = discounts(len(choice.chosen) + 1).tolist()
        self._plain = self._gain(choice.chosen)
        self._visits = _VISITS

    def best(self, node: Node | None, free: list[Hit]) -> tuple[list[Hit], list[Hit]]:
        """The run, and the demonstrations of the plain choice that follow it."""
        if node is None:
            return [], free
        found = self._below(node, (), tuple(free))
        return list(found.run), list(found.rest)

    def _below(self, node: Node, run: tuple[Hit, ...], rest: tuple[Hit, ...]) -> _Found:
        size = self._settings.block_size
        best = _Found(node.end // size * size, 1 - self._kept(run, rest), run, rest)
        own = {hit.id: hit for hit in rest}
        children = [id_ for id_ in own if id_ in node.children]
        children += islice((id_ for id_ in self._others if id_ in node.children), _NEWCOMERS)
        for id_ in children:
            hit = own.get(id_) or self._others[id_]
            left = tuple(each for each in rest if each.id != id_) if id_ in own else self._exchanged(run, rest, hit)
            if hit in run or left is None or not self._visits:
                continue
            self._visits -= 1
            found = self._below(node.children[id_], (*run, hit), left)
            if (found.n_cached, -found.loss) > (best.n_cached, -best.loss):
                best = found
        return best

    def _exchanged(self, run: tuple[Hit, ...], rest: tuple[Hit, ...], hit: Hit) -> tuple[Hit, ...] | None:
        """`rest` without the least similar hits, which a new one replaces; None if that is below the floor."""
        left = rest[:-1]
        while left and self._n_tokens((*run, *left, hit)) > self._budget:
            left = left[:-1]
        fits = rest and self._n_tokens((*run, *left, hit)) <= self._budget
        return left if fits and self._kept((*run, hit), left) >= self._settings.min_relevance else None

    def _n_tokens(self, hits: Sequence[Hit]) -> int:
        return sum(self._counts[hit.id] for hit in (*hits, *self._personal))

    def _kept(self, run: Sequence[Hit], rest: Sequence[Hit]) -> float:
        return self._gain((*self._personal, *run, *rest)) / self._plain if self._plain > 0 else 1.0

    def _gain(self, hits: Sequence[Hit]) -> float:
        """Discounted gain, as in `CandidateBatch.relevance`."""
        gains = sorted((max(hit.score, 0.0) for hit in hits), reverse=True)
        return sum(gain * weight for gain, weight in zip(gains, self._weights, strict=False))
