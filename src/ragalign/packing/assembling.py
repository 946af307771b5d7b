"""Assembling prompts from a beginning, demonstrations and a conversation."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate, islice

import numpy as np

from ragalign.errors import BudgetError
from ragalign.packing.beginnings import Beginning, Beginnings
from ragalign.packing.choosing import Choice
from ragalign.packing.pieces import DemonstrationTokens, Ids
from ragalign.packing.settings import Packing
from ragalign.templates import Constant
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, DroppedDemonstration, DropReason, Hit, Prompt, UsedDemonstration


class Assembler:
    """Assembles token-exact prompts.

    Args:
        packing: the limits.
        beginnings: the beginnings of prompts.
        tokenizer: the model's tokenizer.
        constants: demonstrations that prompts begin with.
        n_constants: number of constants within the limits.
        stop: the template's stop strings.
        context_length: maximum tokens of prompt and completion together; None for no limit.
    """

    def __init__(
        self,
        packing: Packing,
        beginnings: Beginnings,
        tokenizer: Tokenizer,
        constants: Sequence[Constant],
        n_constants: int,
        *,
        stop: tuple[str, ...],
        context_length: int | None,
    ) -> None:
        self._packing = packing
        self._beginnings = beginnings
        self._tokenizer = tokenizer
        self._constants = constants
        self._n_constants = n_constants
        self._stop = stop
        self._context_length = context_length
        self._prefix, self._suffix = _array(tokenizer.prefix_ids), _array(tokenizer.suffix_ids)

    def n_tokens_before(self, choice: Choice) -> int:
        """Tokens before the retrieved demonstrations: special tokens, preamble and constant demonstrations."""
        return len(self._prefix) + len(self._beginnings.get(choice.system, choice.n_constants).ids)

    def ordered(self, choice: Choice) -> list[Hit]:
        """The chosen demonstrations, in the order of `Packing.order`."""
        chosen = choice.chosen
        if self._packing.order == "most_similar_last":
            return chosen[::-1]
        if self._packing.order == "random":
            # Seeded by the query, so that the same query gets the same prompt in every batch.
            return random.Random(choice.query_text).sample(chosen, len(chosen))
        return list(chosen)

    def assemble(
        self,
        choice: Choice,
        ordered: Sequence[Hit],
        dropped: Sequence[DroppedDemonstration],
        pieces: Mapping[str, DemonstrationTokens],
    ) -> Prompt:
        """Assemble the prompt with the demonstrations `ordered`, dropping the least similar ones if it is too long.

        Raises:
            BudgetError: the conversation does not fit.
        """
        beginning, query_ids = self._beginnings.get(choice.system, choice.n_constants), choice.query_ids
        if not len(beginning.ids) and not ordered and self._beginnings.exact:
            # At the start of the prompt, the ids of the conversation can differ.
            query_ids = self._tokenizer.encode(choice.query_text)
        ordered, dropped = list(ordered), list(dropped)
        while True:
            prompt = self._joined(beginning, ordered, dropped, pieces, choice.query_text, query_ids)
            reason = self._excess(prompt, choice.max_new_tokens)
            if reason is None:
                return prompt
            # The whole can have more ids than its parts: drop the least similar demonstrations, and then the last
            # constant ones, until it fits.
            if ordered:
                hit = max(ordered, key=lambda hit: hit.rank)
                ordered.remove(hit)
                piece = pieces[hit.id]
                dropped.insert(0, DroppedDemonstration(hit.id, piece.source_id, hit.score, piece.n_tokens, reason))
            elif beginning.used:
                beginning = self._beginnings.get(choice.system, len(beginning.used) - 1)
            else:
                raise self._too_long(prompt, choice.max_new_tokens)

    def _joined(
        self,
        beginning: Beginning,
        ordered: Sequence[Hit],
        dropped: Sequence[DroppedDemonstration],
        pieces: Mapping[str, DemonstrationTokens],
        query_text: str,
        query_ids: list[int],
    ) -> Prompt:
        parts = [self._prefix, beginning.ids]
        texts = list(beginning.texts)
        used = list(beginning.used)
        at_start = not len(beginning.ids)
        start = len(self._prefix) + len(beginning.ids)
        for hit in ordered:
            piece = pieces[hit.id]
            ids, n_tokens = (piece.start_ids, len(piece.start_ids)) if at_start else (piece.ids, piece.n_tokens)
            at_start = False
            parts.append(ids)
            texts.append(piece.text)
            used.append(UsedDemonstration(hit.id, piece.source_id, hit.score, n_tokens, start))
            start += n_tokens
        parts += [_array(query_ids), self._suffix]
        texts.append(query_text)
        counts = (beginning.n_preamble_tokens, len(query_ids))
        if not beginning.exact:
            parts, used, counts = self._retokenised(texts, used)
        return Prompt(
            pieces=tuple(texts),
            ids=np.concatenate(parts),
            demonstrations=tuple(used),
            dropped=(*self._dropped_constants(len(beginning.used)), *dropped),
            stop=self._stop,
            n_special_tokens=self._tokenizer.n_special_tokens,
            n_preamble_tokens=counts[0],
            n_query_tokens=counts[1],
            max_tokens=self._packing.max_tokens,
        )

    def _retokenised(
        self, texts: list[str], used: list[UsedDemonstration]
    ) -> tuple[list[Ids], list[UsedDemonstration], tuple[int, int]]:
        """Ids of the whole text; each token belongs to the part in which it starts."""
        ids, sizes = self._tokenizer.encode_parts(texts)
        first = len(sizes) - 1 - len(used)
        starts = islice(accumulate(sizes, initial=len(self._prefix)), first, None)
        counted = [
            replace(demonstration, n_tokens=size, start=start)
            for demonstration, size, start in zip(used, sizes[first:-1], starts, strict=False)
        ]
        parts = [self._prefix, _array(ids), self._suffix]
        return parts, counted, (sum(sizes[:first]), sizes[-1])

    def _excess(self, prompt: Prompt, max_new_tokens: int) -> DropReason | None:
        """The limit that the prompt exceeds, or None."""
        if self._context_length is not None and len(prompt.ids) + max_new_tokens > self._context_length:
            return "context"
        return "budget" if prompt.n_demonstration_tokens > self._packing.max_tokens else None

    def _too_long(self, prompt: Prompt, max_new_tokens: int) -> BudgetError:
        over = len(prompt.ids) + max_new_tokens - (self._context_length or 0)
        return BudgetError(
            f"the query takes {prompt.n_query_tokens:,} tokens; with the preamble ({prompt.n_preamble_tokens:,}), "
            f"special tokens ({prompt.n_special_tokens}) and {max_new_tokens:,} tokens reserved for the completion it "
            f"exceeds the model's context of {self._context_length:,} by {over:,}"
        )

    def _dropped_constants(self, n_used: int) -> tuple[DroppedDemonstration, ...]:
        return tuple(
            DroppedDemonstration(demonstration.id, demonstration.source_id, None, n_tokens, reason)
            for demonstration, n_tokens, reason in self._unused_constants[n_used:]
        )

    @cached_property
    def _unused_constants(self) -> list[tuple[Demonstration, int, DropReason]]:
        """Each constant with its tokens and the reason to give if a prompt leaves it out."""
        encoded = self._tokenizer.encode_batch([constant.text for constant in self._constants])
        found: list[tuple[Demonstration, int, DropReason]] = []
        for number, (constant, ids) in enumerate(zip(self._constants, encoded, strict=True)):
            reason: DropReason = "stopped" if number >= self._packing.max_demonstrations else "budget"
            found.append((constant.demonstration, len(ids), "context" if number < self._n_constants else reason))
        return found


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)
