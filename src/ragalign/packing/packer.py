"""The packer: makes token-exact prompts from candidates and a conversation, within a token budget."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ragalign.errors import BudgetError, ConfigError
from ragalign.packing.assembling import Assembler
from ragalign.packing.beginnings import Beginnings
from ragalign.packing.choosing import Choice, Chooser, More
from ragalign.packing.collector import without_collector
from ragalign.packing.joins import Join
from ragalign.packing.pieces import Ids, Pieces, TokenStore
from ragalign.packing.refilling import GROWTH, MOST_WHEN_TIGHT, deeper
from ragalign.packing.settings import Packing
from ragalign.pool.stored import Demonstrations
from ragalign.templates import Constant, Template
from ragalign.templates.turns import system_text
from ragalign.tokenization import Tokenizer
from ragalign.types import DroppedDemonstration, Hit, Prompt, Turn


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts that packers with different settings share."""

    template: Template
    tokenizer: Tokenizer
    pool: Demonstrations
    constants: tuple[Constant, ...]
    context_length: int | None
    beginnings: Beginnings
    pieces: Pieces


class Packer:
    """Packs prompts whose ids equal ``tokenizer(prompt.text)``, tokenising each demonstration only once.

    Args:
        template: the form of prompts, including the preamble and the escaping of delimiters.
        tokenizer: the model's tokenizer.
        pool: the pool of the hits.
        packing: the limits and the order.
        constants: rendered demonstrations that every prompt begins with.
        context_length: maximum tokens of prompt and completion together; None for no limit.
        cache: folder of a cache of demonstrations' ids; None caches in memory only.

    Raises:
        ConfigError: the template's own strings contain a special token of this tokenizer.
    """

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        pool: Demonstrations,
        *,
        packing: Packing | None = None,
        constants: Sequence[Constant] = (),
        context_length: int | None = None,
        cache: Path | None = None,
    ) -> None:
        _check_special_tokens(template, tokenizer)
        # Escape this tokenizer's special tokens like delimiters, so that no text becomes a special id.
        template = template.protecting(tokenizer.special_tokens)
        beginnings = Beginnings(template, tokenizer, constants)
        if not beginnings.exact:
            warnings.warn(
                f"template {template.name!r}: this tokenizer has no fixed token boundaries between its parts, "
                "so every prompt is tokenised as a whole (exact, but slower)",
                stacklevel=2,
            )
        join, store = (beginnings.join, cache) if beginnings.exact else (None, None)
        pieces = Pieces(
            template.render_demonstration,
            lambda texts: _encode_demonstrations(texts, tokenizer, join),
            TokenStore(store / f"{template.fingerprint}-{tokenizer.fingerprint}.sqlite") if store else None,
        )
        self._set(
            _Parts(template, tokenizer, pool, tuple(constants), context_length, beginnings, pieces),
            packing or Packing(),
        )
        if self._chooser.n_constants < len(constants):
            warnings.warn(
                f"only the first {self._chooser.n_constants} of {len(constants)} constant demonstrations are used: "
                f"max_demonstrations is {self.packing.max_demonstrations}, max_tokens {self.packing.max_tokens:,}",
                stacklevel=2,
            )

    def _set(self, parts: _Parts, packing: Packing) -> None:
        self._parts = parts
        self._packing = packing
        self._chooser = Chooser(
            packing,
            parts.beginnings,
            [constant.demonstration.id for constant in parts.constants],
            n_special_tokens=parts.tokenizer.n_special_tokens,
            context_length=parts.context_length,
        )
        self._assembler = Assembler(
            packing,
            parts.beginnings,
            parts.tokenizer,
            parts.constants,
            self._chooser.n_constants,
            stop=parts.template.stops,
            context_length=parts.context_length,
        )

    @property
    def template(self) -> Template:
        """The template, which also escapes the tokenizer's special tokens."""
        return self._parts.template

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self._parts.tokenizer

    @property
    def pool(self) -> Demonstrations:
        """The pool of the hits."""
        return self._parts.pool

    @property
    def packing(self) -> Packing:
        """The limits and the order."""
        return self._packing

    @property
    def constants(self) -> tuple[Constant, ...]:
        """Demonstrations that every prompt begins with."""
        return self._parts.constants

    @property
    def context_length(self) -> int | None:
        """Maximum tokens of prompt and completion together; None for no limit."""
        return self._parts.context_length

    @property
    def has_safe_joins(self) -> bool:
        """Whether ids of parts are concatenated; if not, every prompt is tokenised as a whole, which is slower."""
        return self._parts.beginnings.exact

    def with_packing(self, packing: Packing) -> Packer:
        """Return a packer with other limits, which shares the cache of tokenised demonstrations with this one."""
        other = object.__new__(type(self))
        other._set(self._parts, packing)
        return other

    def with_context_length(self, context_length: int | None) -> Packer:
        """Return a packer for another context length, which shares the cache as `with_packing` does."""
        other = object.__new__(type(self))
        other._set(replace(self._parts, context_length=context_length), self._packing)
        return other

    def pack(
        self,
        turns: Sequence[Turn],
        hits: Sequence[Hit],
        *,
        n_plain: int | None = None,
        more: More | None = None,
        max_new_tokens: int = 0,
    ) -> Prompt:
        """Pack one prompt.

        Args:
            turns: the conversation: system turns first, if any, and a user turn last.
            hits: candidates, best first; constant demonstrations among them are ignored.
            n_plain: number of candidates to choose from; see `choose_many`.
            more: retrieves more candidates; see `choose_many`.
            max_new_tokens: tokens of `context_length` to reserve for the completion.

        Raises:
            BudgetError: the conversation does not fit; it is never truncated.
            DataError: the roles do not alternate, or a turn is not valid Unicode.
        """
        [prompt] = self.pack_many([turns], [hits], n_plain=n_plain, more=more, max_new_tokens=max_new_tokens)
        if isinstance(prompt, BudgetError):
            raise prompt
        return prompt

    def pack_many(
        self,
        conversations: Sequence[Sequence[Turn]],
        hits: Sequence[Sequence[Hit]],
        *,
        n_plain: int | None = None,
        more: More | None = None,
        max_new_tokens: int = 0,
    ) -> list[Prompt | BudgetError]:
        """Pack a batch: a prompt for each conversation, or the error if it does not fit, in input order.

        Raises:
            DataError: as `pack`, for any conversation.
        """
        choices = self.choose_many(conversations, hits, n_plain=n_plain, more=more, max_new_tokens=max_new_tokens)
        prompts: list[Prompt | BudgetError] = []
        with without_collector():
            for choice in choices:
                try:
                    prompts.append(self.finish(choice))
                except BudgetError as error:
                    prompts.append(error)
        return prompts

    def choose_many(
        self,
        conversations: Sequence[Sequence[Turn]],
        hits: Sequence[Sequence[Hit]],
        *,
        n_plain: int | None = None,
        more: More | None = None,
        max_new_tokens: int = 0,
    ) -> list[Choice]:
        """Choose the demonstrations that `pack_many` would use; `assemble` makes a prompt of these or others.

        Args:
            conversations: conversations that end with a user turn.
            hits: the candidates of each, best first.
            n_plain: number of candidates to choose from, and maximum number to choose; None means all. With
                `Packing.refill`, later candidates replace skipped ones.
            more: retrieves more candidates if `hits` are not enough for that; None means there are no more.
            max_new_tokens: tokens of `context_length` to reserve for the completion.

        Raises:
            DataError: as `pack`, for any of the conversations.
        """
        beginnings, template = self._parts.beginnings, self._parts.template
        texts = [template.render_turns(turns) for turns in conversations]
        systems = [system_text(turns) for turns in conversations]
        queries = beginnings.join.encode_after(texts) if beginnings.exact else self.tokenizer.encode_batch(texts)
        seen = [found if n_plain is None else found[:n_plain] for found in hits]
        pieces = self._parts.pieces.load({hit.id for found in seen for hit in found}, self.pool.get)

        def choose(position: int) -> Choice:
            return self._chooser.choose(
                seen[position],
                pieces,
                n_plain,
                system=systems[position],
                query_text=texts[position],
                query_ids=queries[position],
                max_new_tokens=max_new_tokens,
            )

        with without_collector():
            choices = [choose(position) for position in range(len(texts))]
        depth = n_plain or 0
        short = [position for position, choice in enumerate(choices) if choice.n_missing and self.packing.refill]
        while short and depth:
            depth *= GROWTH
            further = deeper(short, seen, hits, depth, more)
            for position, found in further.items():
                seen[position] = found
            pieces = self._parts.pieces.load({hit.id for found in further.values() for hit in found}, self.pool.get)
            for position in further:
                choices[position] = choose(position)
            short = [
                position
                for position in further
                if choices[position].n_missing and (depth < MOST_WHEN_TIGHT or not choices[position].is_tight)
            ]
        return choices

    def token_counts(self, ids: Collection[str]) -> dict[str, int]:
        """The maximum number of tokens that each demonstration takes at any place in a prompt."""
        pieces = self._parts.pieces.load(ids, self.pool.get)
        at_start = not self.constants and not self.template.render_preamble("")
        return {id_: pieces[id_].most_tokens if at_start else pieces[id_].n_tokens for id_ in ids}

    def token_ids(self, ids: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """Token ids of each demonstration, after another part of a prompt and at the start of the text."""
        pieces = self._parts.pieces.load(ids, self.pool.get)
        return [(pieces[id_].ids.tolist(), pieces[id_].start_ids.tolist()) for id_ in ids]

    def answer_ids(self, prompt: Prompt, answer: str) -> list[int]:
        """Token ids of an answer after a prompt: those of the whole text if they continue the prompt's ids."""
        gap = "" if not prompt.text or prompt.text[-1].isspace() else " "
        n_before = len(self.tokenizer.prefix_ids)
        whole = self.tokenizer.encode(f"{prompt.text}{gap}{answer}")
        text_ids = prompt.ids[n_before : len(prompt.ids) - len(self.tokenizer.suffix_ids)].tolist()
        return whole[len(text_ids) :] if whole[: len(text_ids)] == text_ids else self.tokenizer.encode(answer)

    def n_tokens_before(self, choice: Choice) -> int:
        """Tokens before the retrieved demonstrations: special tokens, preamble and constant demonstrations."""
        return self._assembler.n_tokens_before(choice)

    def assemble(self, choice: Choice, ordered: Sequence[Hit]) -> Prompt:
        """Assemble the prompt with the demonstrations `ordered`, in this order instead of `Packing.order`.

        Demonstrations of `choice.chosen` that are not among them are listed as dropped, with the reason ``planned``.

        Args:
            choice: a result of `choose_many`.
            ordered: demonstrations of the pool, within `choice.budget`. If the prompt is still too long, the least
                similar ones are dropped.

        Raises:
            BudgetError: the conversation does not fit.
        """
        pieces = self._parts.pieces.load({hit.id for hit in (*ordered, *choice.chosen)}, self.pool.get)
        kept = {hit.id for hit in ordered}
        dropped = [
            DroppedDemonstration(hit.id, pieces[hit.id].source_id, hit.score, pieces[hit.id].n_tokens, "planned")
            for hit in choice.chosen
            if hit.id not in kept
        ]
        dropped += [demonstration for demonstration in choice.dropped if demonstration.id not in kept]
        return self._assembler.assemble(choice, ordered, dropped, pieces)

    def finish(self, choice: Choice) -> Prompt:
        """Assemble the prompt with the chosen demonstrations, in the order of `Packing.order`.

        Raises:
            BudgetError: the conversation does not fit.
        """
        pieces = self._parts.pieces.load({hit.id for hit in choice.chosen}, self.pool.get)
        return self._assembler.assemble(choice, self._assembler.ordered(choice), choice.dropped, pieces)


def _encode_demonstrations(texts: Sequence[str], tokenizer: Tokenizer, join: Join | None) -> list[tuple[Ids, Ids]]:
    """For each text, the ids after another part and at the start of the prompt; equal without a join."""
    if join is None:
        return [(ids, ids) for ids in map(_array, tokenizer.encode_batch(texts))]
    after, first = join.encode_between(texts), join.encode_before(texts)
    return [(_array(ids), _array(start_ids)) for ids, start_ids in zip(after, first, strict=True)]


def _check_special_tokens(template: Template, tokenizer: Tokenizer) -> None:
    own = template.opening + template.middle + template.closing + template.opening + template.cue
    for token in sorted(tokenizer.special_tokens):
        if token in own:
            raise ConfigError(
                f"template {template.name!r}: it contains {token!r}, a special token of this tokenizer; prompts for "
                "base models are plain text, so use a template without it"
            )


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)
