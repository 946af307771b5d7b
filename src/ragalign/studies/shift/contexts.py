"""What the base model sees before the answer: the aligned model's own prompt, or a recipe's."""

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
"""The context that the aligned model had: what Lin et al. compare."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An answer behind a context, ready to be read.

    Attributes:
        ids: all token ids.
        start: where the answer begins in them.
        n_demonstrations: in the context.
        own: for each token of the answer, its number among those behind `start`; None where the base model splits
            the text otherwise.
        same_ids: whether each of these is the very token that the aligned model wrote.
    """

    ids: list[int]
    start: int
    n_demonstrations: int
    own: list[int | None]
    same_ids: list[bool]


class Contexts:
    """Puts answers behind contexts.

    Args:
        base: the base model's tokenizer.
        shared: whether the aligned model numbers its tokens alike.
        index: what recipes retrieve from.
        context_length: of the base model.
        max_tokens: most tokens of an answer.
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
        # A text may take a few tokens more behind another one; what really does not fit is seen then.
        self._room = max_tokens + 8
        self._aligners: dict[str, Aligner] = {}

    def place(
        self, recipe: str, queries: Sequence[Query], answers: Sequence[AlignedAnswer]
    ) -> list[Placed | BudgetError]:
        """Each answer behind a recipe's prompt (for "", the aligned model's own), or why it does not fit."""
        if not recipe:
            return [self._behind_same(answer) for answer in answers]
        aligner = self.aligner(recipe)
        prompts = aligner.packer.pack_many(
            [query.turns for query in queries],
            aligner.retrieve(queries),
            n_plain=aligner.candidates,
            more=aligner.more(queries),
            max_new_tokens=self._room,
        )
        return [
            prompt if isinstance(prompt, BudgetError) else self._behind_prompt(aligner, prompt, answer)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def aligner(self, recipe: str) -> Aligner:
        """What packs a recipe's prompts for the base model."""
        if recipe not in self._aligners:
            self._aligners[recipe] = Aligner.from_recipe(
                recipe, index=self._index, tokenizer=self._base.packing, context_length=self._context_length
            )
        return self._aligners[recipe]

    def _behind_same(self, answer: AlignedAnswer) -> Placed | BudgetError:
        if self._shared:
            ids = [*answer.prompt_ids, *answer.token_ids]
            n = len(answer.token_ids)
            return self._checked(Placed(ids, len(answer.prompt_ids), 0, list(range(n)), [True] * n))
        return self._by_text(answer.prompt_text, answer, "", 0)

    def _behind_prompt(self, aligner: Aligner, prompt: Prompt, answer: AlignedAnswer) -> Placed | BudgetError:
        template = aligner.packer.template
        # What stands between the cue that ends a prompt and the answers of demonstrations, mostly a space.
        return self._by_text(prompt.text, answer, template.render_answer(""), len(prompt.demonstrations))

    def _by_text(self, before: str, answer: AlignedAnswer, lead: str, n_demonstrations: int) -> Placed | BudgetError:
        """Write the answer's text behind `before` and find its tokens again."""
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
        return self._checked(Placed(ids, first, n_demonstrations, own, same))

    def _checked(self, placed: Placed) -> Placed | BudgetError:
        # The last token is only read, but engines want room for one more.
        if self._context_length is not None and len(placed.ids) >= self._context_length:
            return BudgetError(
                f"prompt and answer take {len(placed.ids):,} tokens; the base model takes "
                f"{self._context_length - 1:,} to look at"
            )
        return placed


def chat_prompt(tokens: Tokens, query: Query) -> Prompt:
    """A query in an aligned model's own chat form."""
    text, ids = tokens.chat(query.turns)
    return Prompt(pieces=(text,), ids=np.array(ids, dtype=np.int32))
