"""Candidates, a conversation and a token budget in; a token-exact prompt out."""

from __future__ import annotations

import copy
import gc
import random
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ragalign.errors import BudgetError, ConfigError
from ragalign.packing.joins import Join
from ragalign.packing.knobs import Packing
from ragalign.packing.pieces import Ids, Piece, Pieces, TokenStore
from ragalign.pool import Pool
from ragalign.templates import Constant, Template
from ragalign.templates.template import system_text
from ragalign.tokenization import Tokenizer
from ragalign.types import Demonstration, DroppedDemonstration, DropReason, Hit, Prompt, Turn, UsedDemonstration


class _Static(NamedTuple):
    """The part of a prompt that does not depend on the query."""

    texts: tuple[str, ...]
    ids: Ids
    n_preamble_tokens: int
    used: tuple[UsedDemonstration, ...]
    exact: bool  # whether its ids may be put before others as they are

    @property
    def n_constant_tokens(self) -> int:
        return sum(used.n_tokens for used in self.used)


@dataclass(frozen=True, slots=True)
class Choice:
    """What the packer chose for one prompt, before it is assembled.

    Attributes:
        chosen: the candidates that go in, best first.
        dropped: those that do not, each with its reason.
        budget: tokens that retrieved demonstrations may take together.
        system: the system turns' text.
        n_constants: how many constant demonstrations the prompt begins with.
        query_text, query_ids: the rendered conversation and its ids.
        max_new_tokens: room that is left for the completion.
    """

    chosen: list[Hit]
    dropped: list[DroppedDemonstration]
    budget: int
    system: str
    n_constants: int
    query_text: str
    query_ids: list[int]
    max_new_tokens: int


class Packer:
    """Packs prompts whose ids equal ``tokenizer(prompt.text)``, from demonstrations that are tokenised once.

    Args:
        template: the prompt's form, its preamble and what happens to delimiters in texts.
        tokenizer: the model's.
        pool: where hits are looked up.
        packing: the knobs.
        constants: demonstrations that every prompt begins with, as they are in a prompt file.
        context_length: tokens that prompt and completion share; None for no such limit.
        cache: a folder for the ids of demonstrations, kept between runs; None keeps them in memory only.

    Raises:
        ConfigError: the template's own strings hold a special token of this tokenizer.
    """

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        pool: Pool,
        *,
        packing: Packing | None = None,
        constants: Sequence[Constant] = (),
        context_length: int | None = None,
        cache: Path | None = None,
    ) -> None:
        _check_special_tokens(template, tokenizer)
        # Special tokens of this tokenizer join the delimiters, so that the text alone already gives no special id.
        template = template.protecting(tokenizer.special_tokens)
        self.template = template
        self.tokenizer = tokenizer
        self.pool = pool
        self.packing = packing or Packing()
        self.constants = tuple(constants)
        self.context_length = context_length
        self._prefix, self._suffix = _array(tokenizer.prefix_ids), _array(tokenizer.suffix_ids)
        self._join = Join(tokenizer, template.closing, template.opening)
        self._join_behind = lru_cache(maxsize=64)(lambda left: Join(tokenizer, left, template.opening))
        self._static = lru_cache(maxsize=64)(self._make_static)
        self._exact_parts = self._join.safe
        self._constant_ids = frozenset(constant.demonstration.id for constant in self.constants)
        self._exact_parts = self._static("", len(self.constants)).exact
        self._n_constants = self._within_budget()
        if not self._exact_parts:
            warnings.warn(
                f"template {template.name!r}: its joins are not proven safe with this tokenizer, "
                "so every prompt is tokenised as a whole (exact, but slower)",
                stacklevel=2,
            )
        store = None
        if cache is not None and self._exact_parts:
            store = TokenStore(cache / f"{template.fingerprint}-{tokenizer.fingerprint}.sqlite")
        self._pieces = Pieces(template.render_demonstration, self._encode_demonstrations, store)
        if self._n_constants < len(self.constants):
            warnings.warn(
                f"only the first {self._n_constants} of {len(self.constants)} constant demonstrations are used: "
                f"max_demonstrations is {self.packing.max_demonstrations}, max_tokens {self.packing.max_tokens:,}",
                stacklevel=2,
            )

    def with_packing(self, packing: Packing) -> Packer:
        """The same packer with other knobs; the demonstrations that either has tokenised are known to both."""
        other = copy.copy(self)
        other.__dict__.pop("_spare_constants", None)
        other.packing = packing
        other._static = lru_cache(maxsize=64)(other._make_static)
        other._n_constants = other._within_budget()
        return other

    def pack(self, turns: Sequence[Turn], hits: Sequence[Hit], *, max_new_tokens: int = 0) -> Prompt:
        """Pack one prompt.

        Args:
            turns: the conversation, ending with a user turn; system turns lead it, if any.
            hits: candidates, best first; those that are constant demonstrations too are not repeated.
            max_new_tokens: room to leave for the completion inside `context_length`.

        Raises:
            BudgetError: the conversation does not fit; it is never truncated.
            DataError: the turns are in no order that a template can render, or are no valid Unicode.
        """
        [prompt] = self.pack_many([turns], [hits], max_new_tokens=max_new_tokens)
        if isinstance(prompt, BudgetError):
            raise prompt
        return prompt

    def pack_many(
        self, conversations: Sequence[Sequence[Turn]], hits: Sequence[Sequence[Hit]], *, max_new_tokens: int = 0
    ) -> list[Prompt | BudgetError]:
        """Pack a batch, in order: a prompt for each conversation, or the error of one that does not fit.

        Raises:
            DataError: as `pack`, for any of the conversations.
        """
        choices = self.choose_many(conversations, hits, max_new_tokens=max_new_tokens)
        prompts: list[Prompt | BudgetError] = []
        with without_collector():
            for choice in choices:
                try:
                    prompts.append(self.finish(choice))
                except BudgetError as error:
                    prompts.append(error)
        return prompts

    def choose_many(
        self, conversations: Sequence[Sequence[Turn]], hits: Sequence[Sequence[Hit]], *, max_new_tokens: int = 0
    ) -> list[Choice]:
        """What `pack_many` would put into each prompt; `assemble` makes a prompt of it, or of another selection.

        Raises:
            DataError: as `pack`, for any of the conversations.
        """
        pieces = self._pieces.load({hit.id for found in hits for hit in found}, self.pool.get)
        texts = [self.template.render_turns(turns) for turns in conversations]
        queries = self._join.encode_after(texts) if self._exact_parts else self.tokenizer.encode_batch(texts)
        choices: list[Choice] = []
        with without_collector():
            for turns, text, ids, found in zip(conversations, texts, queries, hits, strict=True):
                system = system_text(turns)
                static, room = self._fit_static(system, len(ids), max_new_tokens)
                chosen, dropped = self._choose(found, pieces, static, room)
                budget = min(self.packing.max_tokens - static.n_constant_tokens, room)
                choices.append(Choice(chosen, dropped, budget, system, len(static.used), text, ids, max_new_tokens))
        return choices

    def token_counts(self, ids: Collection[str]) -> dict[str, int]:
        """The most tokens that each of these demonstrations takes in a prompt, wherever it stands."""
        pieces = self._pieces.load(ids, self.pool.get)
        at_start = not self.constants and not self.template.render_preamble("")
        return {id_: pieces[id_].most_tokens if at_start else pieces[id_].n_tokens for id_ in ids}

    def n_tokens_before(self, choice: Choice) -> int:
        """Tokens before the retrieved demonstrations: special ones, the preamble and constant demonstrations."""
        return len(self._prefix) + len(self._static(choice.system, choice.n_constants).ids)

    def assemble(self, choice: Choice, ordered: Sequence[Hit]) -> Prompt:
        """The prompt that holds the demonstrations `ordered` in this order, whatever `Packing.order` says.

        Those of `choice.chosen` that are not among them are listed as dropped, with the reason ``planned``.

        Args:
            choice: of `choose_many`.
            ordered: demonstrations of the pool; their tokens should be within `choice.budget`. Where a prompt is too
                long all the same, the least similar ones give way.

        Raises:
            BudgetError: the conversation does not fit.
        """
        pieces = self._pieces.load({hit.id for hit in (*ordered, *choice.chosen)}, self.pool.get)
        kept = {hit.id for hit in ordered}
        left_out = [_dropped(hit, pieces[hit.id], "planned") for hit in choice.chosen if hit.id not in kept]
        dropped = left_out + [one for one in choice.dropped if one.id not in kept]
        return self._assemble_within(choice, list(ordered), dropped, pieces)

    def finish(self, choice: Choice) -> Prompt:
        """The prompt of a choice as it stands, ordered as `Packing.order` says.

        Raises:
            BudgetError: the conversation does not fit.
        """
        ordered = self._ordered(choice.chosen, choice.query_text)
        pieces = self._pieces.load({hit.id for hit in choice.chosen}, self.pool.get)
        return self._assemble_within(choice, list(ordered), list(choice.dropped), pieces)

    def _assemble_within(
        self, choice: Choice, ordered: list[Hit], dropped: list[DroppedDemonstration], pieces: Mapping[str, Piece]
    ) -> Prompt:
        static, query_ids = self._static(choice.system, choice.n_constants), choice.query_ids
        if not len(static.ids) and not ordered and self._exact_parts:
            # The conversation stands at the start of the prompt, where its ids can differ.
            query_ids = self.tokenizer.encode(choice.query_text)
        while True:
            prompt = self._assemble(static, ordered, dropped, pieces, choice.query_text, query_ids)
            reason = self._excess(prompt, choice.max_new_tokens)
            if reason is None:
                return prompt
            # Parts on their own may have fewer ids than in the whole: the least similar demonstrations give way,
            # and then the last constant ones, until the whole fits.
            if ordered:
                hit = max(ordered, key=lambda hit: hit.rank)
                ordered.remove(hit)
                dropped.insert(0, _dropped(hit, pieces[hit.id], reason))
            elif static.used:
                static = self._static(choice.system, len(static.used) - 1)
            else:
                raise self._too_long(static, prompt, choice.max_new_tokens)

    def _fit_static(self, system: str, n_query_tokens: int, max_new_tokens: int) -> tuple[_Static, int]:
        """The static part with as many constants as the context has room for, and the room that is left."""
        n_constants = self._n_constants
        while True:
            static = self._static(system, n_constants)
            if self.context_length is None:
                return static, self.packing.max_tokens
            n_fixed = self.tokenizer.n_special_tokens + len(static.ids) + n_query_tokens
            room = self.context_length - max_new_tokens - n_fixed
            if room >= 0 or n_constants == 0:
                return static, room
            n_constants -= 1

    def _too_long(self, static: _Static, prompt: Prompt, max_new_tokens: int) -> BudgetError:
        over = len(prompt.ids) + max_new_tokens - (self.context_length or 0)
        return BudgetError(
            f"the query takes {prompt.n_query_tokens:,} tokens; with the preamble ({prompt.n_preamble_tokens:,}), "
            f"special tokens ({prompt.n_special_tokens}) and {max_new_tokens:,} tokens kept for the completion it "
            f"exceeds the model's context of {self.context_length:,} by {over:,}"
        )

    def _choose(
        self, hits: Sequence[Hit], pieces: Mapping[str, Piece], static: _Static, room: int
    ) -> tuple[list[Hit], list[DroppedDemonstration]]:
        """Which candidates go in, best first, and why the others do not."""
        packing = self.packing
        budget = packing.max_tokens - static.n_constant_tokens
        places = packing.max_demonstrations - len(static.used)
        at_start = not len(static.ids)
        chosen: list[Hit] = []
        dropped: list[DroppedDemonstration] = []
        stopped = False
        seen = set(self._constant_ids)
        for hit in hits:
            if hit.id in seen:
                continue
            seen.add(hit.id)
            piece = pieces[hit.id]
            # Any demonstration may end up first in the prompt, where its ids can differ.
            cost = piece.most_tokens if at_start else piece.n_tokens
            reason: DropReason
            if stopped or len(chosen) >= places:
                reason = "stopped"
            elif cost > packing.max_demonstration_tokens:
                reason = "too_long"
            elif cost > budget or cost > room:
                reason = "budget" if cost > budget else "context"
                stopped = packing.when_full == "stop"
            else:
                budget -= cost
                room -= cost
                chosen.append(hit)
                continue
            dropped.append(_dropped(hit, piece, reason))
        return chosen, dropped

    def _assemble(
        self,
        static: _Static,
        ordered: Sequence[Hit],
        dropped: Sequence[DroppedDemonstration],
        pieces: Mapping[str, Piece],
        query_text: str,
        query_ids: list[int],
    ) -> Prompt:
        parts = [self._prefix, static.ids]
        texts = list(static.texts)
        used = list(static.used)
        at_start = not len(static.ids)
        start = len(self._prefix) + len(static.ids)
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
        counts = (static.n_preamble_tokens, len(query_ids))
        if not static.exact:
            parts, used, counts = self._retokenise(texts, used)
        return Prompt(
            pieces=tuple(texts),
            ids=np.concatenate(parts),
            demonstrations=tuple(used),
            dropped=(*self._dropped_constants(len(static.used)), *dropped),
            stop=self.template.stops,
            n_special_tokens=self.tokenizer.n_special_tokens,
            n_preamble_tokens=counts[0],
            n_query_tokens=counts[1],
            max_tokens=self.packing.max_tokens,
        )

    def _ordered(self, chosen: list[Hit], query_text: str) -> Sequence[Hit]:
        if self.packing.order == "most_similar_last":
            return chosen[::-1]
        if self.packing.order == "random":
            # Seeded by the query: the same query gets the same prompt, whatever else is in the batch.
            return random.Random(query_text).sample(chosen, len(chosen))
        return chosen

    def _retokenise(
        self, texts: list[str], used: list[UsedDemonstration]
    ) -> tuple[list[Ids], list[UsedDemonstration], tuple[int, int]]:
        """Ids of the whole text, its tokens counted to the parts in which they start."""
        ids, sizes = self.tokenizer.encode_parts(texts)
        first = len(sizes) - 1 - len(used)
        starts = accumulate(sizes, initial=len(self._prefix))
        counted = [
            replace(one, n_tokens=size, start=start)
            for one, size, start in zip(used, sizes[first:-1], islice(starts, first, None), strict=False)
        ]
        parts = [self._prefix, _array(ids), self._suffix]
        return parts, counted, (sum(sizes[:first]), sizes[-1])

    def _excess(self, prompt: Prompt, max_new_tokens: int) -> DropReason | None:
        """Which limit the prompt exceeds, if any."""
        if self.context_length is not None and len(prompt.ids) + max_new_tokens > self.context_length:
            return "context"
        return "budget" if prompt.n_demonstration_tokens > self.packing.max_tokens else None

    def _encode_demonstrations(self, texts: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """Ids behind another part and at the start of the prompt, for each text."""
        if not self._exact_parts:
            return [(ids, ids) for ids in map(_array, self.tokenizer.encode_batch(texts))]
        behind, first = self._join.encode_between(texts), self._join.encode_before(texts)
        return [(_array(ids), _array(start_ids)) for ids, start_ids in zip(behind, first, strict=True)]

    def _within_budget(self) -> int:
        """How many of the constants, from the first, are within `max_demonstrations` and `max_tokens`."""
        n_constants = min(len(self.constants), self.packing.max_demonstrations)
        while self._static("", n_constants).n_constant_tokens > self.packing.max_tokens:
            n_constants -= 1
        return n_constants

    def _dropped_constants(self, n_used: int) -> tuple[DroppedDemonstration, ...]:
        return tuple(
            DroppedDemonstration(one.id, one.source_id, None, n_tokens, reason)
            for one, n_tokens, reason in self._spare_constants[n_used:]
        )

    @cached_property
    def _spare_constants(self) -> list[tuple[Demonstration, int, DropReason]]:
        """For each constant, its tokens and the reason should it not be in a prompt."""
        texts = [constant.text for constant in self.constants]
        spare: list[tuple[Demonstration, int, DropReason]] = []
        for number, (constant, ids) in enumerate(zip(self.constants, self.tokenizer.encode_batch(texts), strict=True)):
            reason: DropReason = "stopped" if number >= self.packing.max_demonstrations else "budget"
            spare.append((constant.demonstration, len(ids), "context" if number < self._n_constants else reason))
        return spare

    def _make_static(self, system: str, n_constants: int) -> _Static:
        preamble = self.template.render_preamble(system)
        used = self.constants[:n_constants]
        texts = (*filter(None, [preamble]), *(constant.text for constant in used))
        whole = "".join(texts)
        if not whole:
            return _Static((), _array([]), 0, (), self._exact_parts)
        join = self._join_behind(whole[len(whole.rstrip()) :] or whole[-1])
        exact = self._exact_parts and join.safe
        # Where the join is safe, the ids are those that stand before the next part.
        ids, sizes = self.tokenizer.encode_parts((*texts, self.template.opening if exact else ""))
        sizes.pop()
        ids = ids[: sum(sizes)]
        first = len(texts) - len(used)
        starts = accumulate(sizes[first:], initial=len(self._prefix) + sum(sizes[:first]))
        counted = tuple(
            UsedDemonstration(constant.demonstration.id, constant.demonstration.source_id, None, size, start)
            for constant, size, start in zip(used, sizes[first:], starts, strict=False)
        )
        return _Static(texts, _array(ids), sizes[0] if preamble else 0, counted, exact)


@contextmanager
def without_collector() -> Iterator[None]:
    """A batch makes many small objects without cycles; looking for some would take half of its time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _check_special_tokens(template: Template, tokenizer: Tokenizer) -> None:
    own = template.opening + template.middle + template.closing + template.opening + template.cue
    for token in sorted(tokenizer.special_tokens):
        if token in own:
            raise ConfigError(
                f"template {template.name!r}: {token!r} in it is a special token of this tokenizer, and prompts for "
                "base models are plain text throughout; use a template without it"
            )


def _dropped(hit: Hit, piece: Piece, reason: DropReason) -> DroppedDemonstration:
    return DroppedDemonstration(hit.id, piece.source_id, hit.score, piece.n_tokens, reason)


def _array(ids: Sequence[int]) -> Ids:
    return np.array(ids, dtype=np.int32)
