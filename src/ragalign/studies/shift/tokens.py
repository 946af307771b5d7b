"""Tokenizers for the analysis: spans of tokens in a text, and matching of two tokenizers."""

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
    """A model's tokenizer: its chat template, the text of tokens, and their spans.

    Args:
        model: a folder or hub id.

    Raises:
        ConfigError: there is no tokenizer, or it does not return the spans of tokens.
    """

    def __init__(self, model: str | Path) -> None:
        from transformers import AutoTokenizer

        self.packing = Tokenizer.load(model)  # raises a one-line error if the tokenizer cannot be loaded
        self._tokenizer: Any = AutoTokenizer.from_pretrained(locate_tokenizer(model))
        if not getattr(self._tokenizer, "is_fast", False):
            raise ConfigError(
                f"{model} has no fast tokenizer (tokenizer.json), which is needed for the spans of tokens"
            )

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids of all tokens except special and added ones, which can differ within a family of models."""
        added = {token.content for token in self._tokenizer.added_tokens_decoder.values()}
        return {piece: id_ for piece, id_ in self._tokenizer.get_vocab().items() if piece not in added}

    def chat(self, turns: Sequence[Turn]) -> tuple[str, list[int]]:
        """A conversation in the model's chat template, up to its answer, as text and ids."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs that can raise anything
            reason = " ".join(str(error).split())
            raise ConfigError(f"the model's chat template rejects this conversation: {reason}") from None
        return text, self._tokenizer(text, add_special_tokens=False).input_ids

    def pieces(self, ids: Sequence[int], before: Sequence[int]) -> list[str]:
        """The text that each of `ids` adds after the ids `before`; empty where a character is incomplete."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(ids=list(before), skip_special_tokens=True)
        return [stream.step(self._tokenizer.backend_tokenizer, id_) or "" for id_ in ids]

    def show(self, id_: int) -> str:
        """The text of a single token."""
        text = self._tokenizer.decode([id_])
        piece = self._tokenizer.convert_ids_to_tokens(id_)
        # SentencePiece's decoder drops a leading space.
        return f" {text}" if isinstance(piece, str) and piece.startswith("\u2581") and text[:1] != " " else text

    def places(self, text: str, start: int) -> tuple[list[int], int, list[Span]]:
        """Tokenise a text, and find the tokens after a character position.

        Returns:
            All ids with special tokens; the index of the first id that ends after character `start`; and the span of
            each id from there, in characters from `start`.
        """
        encoding = self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        first = next((number for number, (_, end) in enumerate(encoding.offsets) if end > start), len(encoding.ids))
        spans = [(max(0, begin - start), end - start) for begin, end in encoding.offsets[first:]]
        ids = [*self.packing.prefix_ids, *encoding.ids]
        return ids, first + len(self.packing.prefix_ids), spans


def same_tokens(first: Tokens, second: Tokens) -> bool:
    """Whether two models have the same vocabulary, ignoring special and added tokens."""
    return first.vocabulary == second.vocabulary


def spans_of(pieces: Sequence[str]) -> list[Span]:
    """The spans of consecutive pieces of a text."""
    spans, place = [], 0
    for piece in pieces:
        spans.append((place, place + len(piece)))
        place += len(piece)
    return spans


def match(text: str, first: Sequence[Span], second: Sequence[Span]) -> list[int | None]:
    """For each token of one tokenisation of a text, the index of the token in another that covers the same characters.

    White space at either end of a token is ignored, since tokenizers attach it to either side.
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
