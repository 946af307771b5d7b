"""The layout of prompts with reuse: kept demonstrations first, without a gap, then computed ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from ragalign.errors import BudgetError
from ragalign.packing import Choice, More, Packer
from ragalign.reuse.eight_bit import Precision
from ragalign.reuse.pieces import piece_name
from ragalign.reuse.store import KeptPieces, StoreManifest
from ragalign.reuse_plan import ReusePlan
from ragalign.types import Hit, Prompt, Turn, UsedDemonstration


class ReusingPacker:
    """Packs prompts, and plans which of their demonstrations to reuse.

    A prompt holds, in this order: special tokens, preamble and constant demonstrations; demonstrations whose keys and
    values are kept; those that are not, which are computed; the most similar ones, computed too if so asked; the
    conversation. Within each part the packer's own order holds.

    Args:
        packer: makes the prompts.
        store: the kept pieces, computed after the packer's prefix.
        real: how many of the most similar demonstrations are computed all the same.
    """

    def __init__(self, packer: Packer, store: KeptPieces, real: int = 0) -> None:
        self.packer = packer
        self.store = store
        self.real = real

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
        """Pack one prompt; takes what `ragalign.planning.OnlinePlanner.pack` does.

        Raises:
            BudgetError, DataError: as `Packer.pack`.
        """
        [choice] = self._choices([turns], [hits], n_plain, more, max_new_tokens)
        return self.finish(choice)

    def learn(self, prompt: Prompt, n_cached_tokens: int | None) -> None:
        """Nothing: what the engine has cached does not change the layout."""

    def pack_many(
        self,
        conversations: Sequence[Sequence[Turn]],
        hits: Sequence[Sequence[Hit]],
        *,
        n_plain: int | None = None,
        more: More | None = None,
        max_new_tokens: int = 0,
    ) -> list[Prompt | BudgetError]:
        """As `Packer.pack_many`."""
        choices = self._choices(conversations, hits, n_plain, more, max_new_tokens)
        return [self._finished(choice) for choice in choices]

    def finish(self, choice: Choice) -> Prompt:
        """The prompt of a choice.

        Raises:
            BudgetError: the conversation does not fit.
        """
        prompt = self.packer.finish(choice)
        prefix = self.store.manifest.prefix_ids
        retrieved = [used for used in prompt.demonstrations if used.score is not None]
        if not retrieved or tuple(prompt.ids[: len(prefix)].tolist()) != prefix:
            return prompt  # such as a conversation with a system turn of its own
        if prefix and not self.store.has(self.store.prefix_name):
            return prompt
        hit_of = {hit.id: hit for hit in choice.chosen}
        real = {hit.id for hit in sorted(choice.chosen, key=lambda hit: hit.rank)[: self.real]}
        parts: tuple[list[Hit], list[Hit], list[Hit]] = ([], [], [])
        for used in retrieved:
            part = 2 if used.id in real else 0 if self._has(prompt, used) else 1
            parts[part].append(hit_of[used.id])
        ordered = [hit for part in parts for hit in part]
        if [hit.id for hit in ordered] != [used.id for used in retrieved]:
            prompt = self.packer.assemble(choice, ordered)
            retrieved = [used for used in prompt.demonstrations if used.score is not None]
        lengths: list[int] = []
        start = len(prefix)
        # Use the ids in the prompt: at the start of a text, a demonstration can have other ids.
        for used in retrieved:
            if used.id in real or used.start != start or not self._has(prompt, used):
                break
            lengths.append(used.n_tokens)
            start += used.n_tokens
        if not lengths:
            return prompt
        return replace(prompt, reuse=ReusePlan(self.store.key, len(prefix), tuple(lengths)))

    def _choices(
        self,
        conversations: Sequence[Sequence[Turn]],
        hits: Sequence[Sequence[Hit]],
        n_plain: int | None,
        more: More | None,
        max_new_tokens: int,
    ) -> list[Choice]:
        n_plain = self.packer.packing.max_demonstrations if n_plain is None else n_plain
        return self.packer.choose_many(conversations, hits, n_plain=n_plain, more=more, max_new_tokens=max_new_tokens)

    def outcomes(self, prompt: Prompt, n_reused_tokens: int | None) -> dict[str, int]:
        """Count the outcomes of a prompt's retrieved demonstrations, apart from the `real` ones.

        Args:
            prompt: the prompt.
            n_reused_tokens: what the engine reused of it; None if it does not say, which counts as planned.

        Returns:
            Counts: ``hit`` were reused, ``failed`` could not be loaded, ``miss`` are not kept, and ``other_prefix``
            follow another text than the store's, such as a system message.
        """
        n_retrieved = sum(used.score is not None for used in prompt.demonstrations)
        prefix = self.store.manifest.prefix_ids
        if tuple(prompt.ids[: len(prefix)].tolist()) != prefix:
            return {"other_prefix": max(0, n_retrieved - self.real)}
        lengths = prompt.reuse.lengths if prompt.reuse else ()
        n_hit = sum(n_reused_tokens is None or end <= n_reused_tokens for end in accumulate(lengths))
        n_missing = max(0, n_retrieved - self.real - len(lengths))
        return {"hit": n_hit, "failed": len(lengths) - n_hit, "miss": n_missing}

    def missing_from(self, prompt: Prompt) -> list[list[int]]:
        """Token ids of a prompt's demonstrations that are not kept; an empty list first if the prefix is not."""
        prefix = self.store.manifest.prefix_ids
        retrieved = [used for used in prompt.demonstrations if used.score is not None]
        if not retrieved or tuple(prompt.ids[: len(prefix)].tolist()) != prefix:
            return []
        before: list[list[int]] = [[]] if prefix and not self.store.has(self.store.prefix_name) else []
        return before + [prompt.ids[used.span].tolist() for used in retrieved if not self._has(prompt, used)]

    def _finished(self, choice: Choice) -> Prompt | BudgetError:
        try:
            return self.finish(choice)
        except BudgetError as error:
            return error

    def _has(self, prompt: Prompt, used: UsedDemonstration) -> bool:
        return self.store.has(piece_name(prompt.ids[used.span]))


def manifest_for(packer: Packer, precision: Precision = "model") -> StoreManifest:
    """The manifest of a store for this packer's prompts, without the model."""
    return StoreManifest(
        prefix_ids=_prefix_ids(packer),
        template=packer.template.fingerprint,
        tokenizer=packer.tokenizer.fingerprint,
        precision=precision,
    )


def piece_ids(packer: Packer, only: Sequence[str] | None = None) -> Iterator[list[int]]:
    """Token ids of the pool's demonstrations, as they are in prompts; those that never fit into one are left out.

    Args:
        packer: makes the prompts.
        only: the ids of some demonstrations; all of the pool by default.
    """
    constant = {constant.demonstration.id for constant in packer.constants}
    at_start = len(_prefix_ids(packer)) == len(packer.tokenizer.prefix_ids)
    names = (demonstration.id for demonstration in packer.pool) if only is None else iter(only)
    wanted = [name for name in names if name not in constant]
    for first in range(0, len(wanted), 1000):
        some = wanted[first : first + 1000]
        for ids, start_ids in packer.token_ids(some):
            if len(ids) <= packer.packing.max_demonstration_tokens:
                yield ids
                if at_start and start_ids != ids:
                    yield start_ids


def _prefix_ids(packer: Packer) -> tuple[int, ...]:
    """The text before the retrieved demonstrations, for a conversation without a system turn."""
    [choice] = packer.choose_many([[Turn("user", "?")]], [[]])
    prompt = packer.assemble(choice, ())
    return tuple(prompt.ids[: packer.n_tokens_before(choice)].tolist())
