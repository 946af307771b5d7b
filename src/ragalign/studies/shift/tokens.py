"""Tokenizers as the analysis of shift needs them: tokens with their places in a text, and pairs of tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.models import locate_tokenizer
from ragalign.tokenization import Tokenizer
from ragalign.types import Turn

Span = tuple[int, int]


class Tokens:
    """A model's tokenizer: chat template, pieces of text, and places of tokens.

    Args:
        model: a folder or hub id.

    Raises:
        ConfigError: there is no tokenizer, or none that tells where in a text its tokens are.
    """

    def __init__(self, model: str | Path) -> None:
        from transformers import AutoTokenizer

        self.packing = Tokenizer.load(model)  # says in one line what is wrong, if anything
        self._tokenizer: Any = AutoTokenizer.from_pretrained(locate_tokenizer(model))
        if not getattr(self._tokenizer, "is_fast", False):
            raise ConfigError(f"{model} has no fast tokenizer (tokenizer.json), which says where its tokens are")

    @property
    def has_chat_template(self) -> bool:
        """Whether the model comes with a form for conversations."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids of all pieces but the special and added ones, by which tokenizers of one family differ."""
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        return {piece: id_ for piece, id_ in self._tokenizer.get_vocab().items() if piece not in added}

    def chat(self, turns: Sequence[Turn]) -> tuple[str, list[int]]:
        """A conversation in the model's own form, ready for its answer: text and ids."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs and raise what they like
            reason = " ".join(str(error).split())
            raise ConfigError(f"the model's chat template does not take this conversation: {reason}") from None
        return text, self._tokenizer(text, add_special_tokens=False).input_ids

    def pieces(self, ids: Sequence[int], before: Sequence[int]) -> list[str]:
        """The text that each of `ids` adds behind the ids `before`: nothing where a character is not complete."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=list(before), skip_special_tokens=True)
        return [stream.step(self._tokenizer.backend_tokenizer, id_) or "" for id_ in ids]

    def show(self, id_: int) -> str:
        """One token on its own, as text."""
        text = self._tokenizer.decode([id_])
        piece = self._tokenizer.convert_ids_to_tokens(id_)
        # SentencePiece's decoder drops the space that begins a word.
        return f" {text}" if isinstance(piece, str) and piece.startswith("\u2581") and text[:1] != " " else text

    def places(self, text: str, start: int) -> tuple[list[int], int, list[Span]]:
        """A text's ids with the special ones around it, the first that is behind `start`, and where those are.

        Returns:
            All ids; the number of the first id that ends behind character `start`; and for each id from there, its
            characters, counted from `start`.
        """
        encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        first = next((number for number, (_, end) in enumerate(encoding.offsets) if end > start), len(encoding.ids))
        spans = [(max(0, begin - start), end - start) for begin, end in encoding.offsets[first:]]
        ids = [*self.packing.prefix_ids, *encoding.ids]
        return ids, first + len(self.packing.prefix_ids), spans


def same_tokens(first: Tokens, second: Tokens) -> bool:
    """Whether two models number the same pieces alike, special and added tokens aside."""
    return first.vocabulary == second.vocabulary


def spans_of(pieces: Sequence[str]) -> list[Span]:
    """Where pieces of a text are in it."""
    spans, place = [], 0
    for piece in pieces:
        spans.append((place, place + len(piece)))
        place += len(piece)
    return spans


def match(text: str, first: Sequence[Span], second: Sequence[Span]) -> list[int | None]:
    """For each token of one splitting of a text, the token of another that stands for the same characters.

    White space around a token's other characters does not count, since tokenizers put it on either side.
    """
    places: dict[tuple[Span, int], int] = {}
    seen: dict[Span, int] = {}
    for number, span in enumerate(second):
        core = _core(text, span)
        places[core, seen.setdefault(core, 0)] = number
        seen[core] += 1
    seen = {}
    found = []
    for span in first:
        core = _core(text, span)
        found.append(places.get((core, seen.setdefault(core, 0))) if core[0] < core[1] else None)
        seen[core] += 1
    return found


def _core(text: str, span: Span) -> Span:
    start, end = span
    part = text[start:end]
    bare = part.strip()
    if not bare:
        return span
    start += len(part) - len(part.lstrip())
    return start, start + len(bare)
