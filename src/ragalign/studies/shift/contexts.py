"""Contexts of the base model: the aligned model's own prompt, or a recipe's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ragalign.aligner import Aligner
from ragalign.errors import BudgetError
from ragalign.studies.shift.record import AlignedAnswer
from ragalign.studies.shift.tokens import Span, Tokens, match, spans_of
from ragalign.types import Prompt, Query

SAME = "same"
"""The aligned model's own context, which Lin et al. compare."""


@dataclass(frozen=True, slots=True)
class AnswerInContext:
    """The tokens of a context followed by an answer.

    Attributes:
        ids: all token ids.
        start: index of the answer's first token.
        n_demonstrations: demonstrations in the context.
        own: for each token of the answer, its index after `start`; None where the base model's tokenizer splits
            the text differently.
        same_ids: whether each of them is the same token as the aligned model's.
    """

    ids: list[int]
    start: int
    n_demonstrations: int
    own: list[int | None]
    same_ids: list[bool]


class Contexts:
    """Appends answers to contexts.

    Args:
        base: the base model's tokenizer.
        shared: whether both models have the same vocabulary.
        index: the index that recipes retrieve from.
        context_length: the base model's context length.
        max_tokens: maximum tokens per answer.
    """

    def __init__(
        self,
        base: Tokens,
        *,
        shared: bool,
        index: str | Path | None,
        context_length: int | None = None,
        max_tokens: int = 0,
    ) -> None:
        self._base = base
        self._shared = shared
        self._index = index
        self._context_length = context_length
        # Leave room for a few more tokens than the answer had; whether it really fits is checked below.
        self._room = max_tokens + 8
        self._aligners: dict[str, Aligner] = {}

    def place(
        self, recipe: str, queries: Sequence[Query], answers: Sequence[AlignedAnswer]
    ) -> list[AnswerInContext | BudgetError]:
        """Append each answer to a recipe's prompt ("" for the aligned model's own), or return why it does not fit."""
        if not recipe:
            return [self._after_same(answer) for answer in answers]
        aligner = self.aligner(recipe)
        prompts = aligner.packer.pack_many(
            [query.turns for query in queries],
            aligner.retrieve(queries),
            n_plain=aligner.candidates,
            more=aligner.more(queries),
            max_new_tokens=self._room,
        )
        return [
            prompt if isinstance(prompt, BudgetError) else self._after_prompt(aligner, prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def aligner(self, recipe: str) -> Aligner:
        """The aligner that packs a recipe's prompts for the base model."""
        if recipe not in self._aligners:
            self._aligners[recipe] = Aligner.from_recipe(
                recipe, index=self._index, tokenizer=self._base.packing, context_length=self._context_length
            )
        return self._aligners[recipe]

    def _after_same(self, answer: AlignedAnswer) -> AnswerInContext | BudgetError:
        if self._shared:
            ids = [*answer.prompt_ids, *answer.token_ids]
            n = len(answer.token_ids)
            return self._checked(AnswerInContext(ids, len(answer.prompt_ids), 0, list(range(n)), [True] * n))
        return self._by_text(answer.prompt_text, answer, "", 0)

    def _after_prompt(self, aligner: Aligner, prompt: Prompt, answer: AlignedAnswer) -> AnswerInContext | BudgetError:
        template = aligner.packer.template
        # The text between a prompt's final cue and an answer, as in demonstrations; usually a space.
        return self._by_text(prompt.text, answer, template.render_answer(""), len(prompt.demonstrations))

    def _by_text(
        self, before: str, answer: AlignedAnswer, lead: str, n_demonstrations: int
    ) -> AnswerInContext | BudgetError:
        """Append the answer's text to `before` and match its tokens."""
        text = answer.text
        margin = len(text) - len(text.lstrip())
        if before:
            lead = lead or (text[:margin] if not before[-1].isspace() else "")
        start = len(before) + len(lead)
        ids, first, spans = self._base.places(before + lead + text[margin:], start)
        spans = [(begin + margin, end + margin) for begin, end in spans]
        pieces: list[Span] = spans_of(answer.pieces)
        own = match(text, pieces, spans)
        same = [
            self._shared and place is not None and ids[first + place] == id_
            for place, id_ in zip(own, answer.token_ids, strict=True)
        ]
        return self._checked(AnswerInContext(ids, first, n_demonstrations, own, same))

    def _checked(self, placed: AnswerInContext) -> AnswerInContext | BudgetError:
        # Engines require room for one token after the last.
        if self._context_length is not None and len(placed.ids) >= self._context_length:
            return BudgetError(
                f"prompt and answer have {len(placed.ids):,} tokens, more than the base model's limit of "
                f"{self._context_length - 1:,}"
            )
        return placed


def chat_prompt(tokens: Tokens, query: Query) -> Prompt:
    """A query in an aligned model's own chat template."""
    text, ids = tokens.chat(query.turns)
    return Prompt(pieces=(text,), ids=np.array(ids, dtype=np.int32))
