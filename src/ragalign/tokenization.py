"""Tokenizers for the packer: exact ids of the parts of a text, with special-token strings treated as plain text."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from ragalign._bars import transformers_errors_only
from ragalign.errors import ConfigError
from ragalign.models import locate_tokenizer


class Tokenizer(ABC):
    """Turns text into token ids.

    Special-token strings inside a text, such as ``</s>``, become the ids of their characters, never the special
    id (transformers calls this ``split_special_tokens``).

    Attributes:
        prefix_ids, suffix_ids: the special ids that the tokenizer adds around a text, such as BOS.
        special_tokens: the strings of its special tokens.
    """

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]
    special_tokens: frozenset[str]

    @classmethod
    def load(cls, name_or_folder: str | Path) -> Tokenizer:
        """Load the tokenizer of a model: a folder, a Hub id, a GGUF file or a packaged model.

        Raises:
            ConfigError: no tokenizer can be loaded from there.
            GenerationError, MissingDependencyError: as `ragalign.models.locate_tokenizer`.
        """
        located = locate_tokenizer(name_or_folder)
        try:
            with transformers_errors_only():
                tokenizer = _auto_tokenizer(located)
        # transformers raises many kinds of errors here; all mean that there is no usable tokenizer.
        except Exception as error:
            raise ConfigError(
                f"cannot load a tokenizer from {str(name_or_folder)!r}: {_why_not(name_or_folder, error)}"
            ) from None
        return cls.wrap(tokenizer)

    @classmethod
    def wrap(cls, tokenizer: Any) -> Tokenizer:
        """Wrap a transformers tokenizer."""
        if getattr(tokenizer, "is_fast", False):
            return FastTokenizer(tokenizer)
        return PythonTokenizer(tokenizer)

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special ids."""

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without special ids."""
        return self.encode_batch([text])[0]

    @abstractmethod
    def split_at(self, text: str, position: int) -> int | None:
        """The number of ids of `text` before character `position`.

        None if an id crosses that position, or if this tokenizer cannot tell.
        """

    @abstractmethod
    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of the joined `parts`, and the number of ids in each part.

        An id belongs to the part in which it starts. If this tokenizer cannot tell, the numbers are those of the parts
        encoded separately, adjusted to add up.
        """

    @abstractmethod
    def may_cross(self, left: str, right: str) -> bool:
        """Whether a piece of the vocabulary can contain character `left` directly followed by `right`."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """The highest known id plus one."""

    def fewest_tokens(self, texts: Iterable[str]) -> int:
        """A lower bound on the total number of ids of `texts`, from their lengths alone; 0 if unknown.

        An id covers at most as many UTF-8 bytes as the longest piece of the vocabulary. White space is not counted,
        since templates strip it.
        """
        longest = self._longest_piece
        if not longest:
            return 0
        return math.ceil(sum(len("".join(text.split()).encode("utf-8", "replace")) for text in texts) / longest)

    @property
    def _longest_piece(self) -> int:
        """Bytes of the longest piece without white space; 0 if an id can stand for any number of bytes."""
        return 0

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over everything that determines the ids, 16 hex digits."""

    @property
    def n_special_tokens(self) -> int:
        """The number of special ids around a text."""
        return len(self.prefix_ids) + len(self.suffix_ids)


class FastTokenizer(Tokenizer):
    """A transformers tokenizer backed by the `tokenizers` package."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer as Backend

        # A copy: the flags and truncation set here must not change the caller's object.
        self._backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self.prefix_ids, self.suffix_ids = _special_ids(tokenizer)
        # Added tokens that are not special (runs of spaces in GPT-NeoX) are ordinary pieces of text.
        added = tokenizer.added_tokens_decoder.values()
        self.special_tokens = frozenset(str(token) for token in added if token.special and str(token).strip())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special ids."""
        # Without offsets this takes two thirds of the time of `encode`, even for one text.
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def split_at(self, text: str, position: int) -> int | None:
        """The number of ids before character `position`; None if an id crosses it."""
        offsets = self._backend.encode(text, add_special_tokens=False).offsets
        before = 0
        for start, end in offsets:
            if start < position < end:
                return None
            before += end <= position
        return before

    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of the joined `parts`, and the number of ids that start in each part."""
        encoding = self._backend.encode("".join(parts), add_special_tokens=False)
        starts = [start for start, _ in encoding.offsets]
        borders = [bisect_left(starts, end) for end in accumulate(map(len, parts[:-1]))]
        sizes = [after - before for before, after in pairwise([0, *borders, len(starts)])]
        return encoding.ids, sizes

    def may_cross(self, left: str, right: str) -> bool:
        """Whether a piece of the vocabulary contains `left` directly followed by `right`."""
        # Byte-level pieces can contain parts of a character, so compare the bytes on both sides of the join.
        bytes_ = _byte_level(left)[-1] + _byte_level(right)[0]
        pairs = {f"{left}{right}", bytes_, f"{left}{right}".replace(" ", "\u2581")}
        return any(pair in piece for piece in self._pieces for pair in pairs)

    @cached_property
    def vocabulary_size(self) -> int:
        """The highest known id plus one."""
        return max(self._backend.get_vocab().values()) + 1

    @cached_property
    def _longest_piece(self) -> int:
        """As in `Tokenizer`; 0 if a normaliser can shorten texts, or unknown characters do not become bytes."""
        content = json.loads(self._backend.to_str())
        if not _keeps_length(content["normalizer"]):
            return 0
        model, is_byte_level = content["model"], "ByteLevel" in json.dumps(content["pre_tokenizer"])
        if model["type"] not in ("BPE", "Unigram") or not (is_byte_level or model.get("byte_fallback")):
            return 0
        added = [token["content"] for token in content["added_tokens"]]
        plain = set(self._pieces) - set(added)
        lengths = [len(_visible(piece)) for piece in plain] if is_byte_level else []
        lengths += [len(_utf8(piece)) for piece in (added if is_byte_level else self._pieces)]
        return max(lengths, default=0)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the serialised tokenizer and its special ids, 16 hex digits."""
        content = self._backend.to_str() + repr((self.prefix_ids, self.suffix_ids))
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @cached_property
    def _pieces(self) -> list[str]:
        return [piece for piece in self._backend.get_vocab() if piece not in self.special_tokens]


class PythonTokenizer(Tokenizer):
    """Any other transformers tokenizer, such as Mistral's, whose pieces are unknown."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._options = {"add_special_tokens": False, "split_special_tokens": True}
        try:
            tokenizer.encode("a", **self._options)
        except ValueError:
            # Mistral's tokenizer rejects the option: it never reads text as a special token.
            del self._options["split_special_tokens"]
        self.prefix_ids, self.suffix_ids = _special_ids(tokenizer)
        self.special_tokens = frozenset(tokenizer.all_special_tokens)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special ids."""
        return [self._tokenizer.encode(text, **self._options) for text in texts]

    def split_at(self, text: str, position: int) -> int | None:
        """Not known."""
        return None

    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Token ids of the joined `parts`, and the approximate number of ids in each part."""
        ids, *own = self.encode_batch(["".join(parts), *parts])
        # Spread the difference between the whole and the sum of the parts in proportion to their sizes.
        share = len(ids) / max(1, sum(map(len, own)))
        borders = [round(share * end) for end in accumulate(map(len, own))]
        return ids, [after - before for before, after in pairwise([0, *borders])]

    def may_cross(self, left: str, right: str) -> bool:
        """Always True: the pieces are unknown."""
        return True

    @cached_property
    def vocabulary_size(self) -> int:
        """The highest known id plus one."""
        return int(max(self._tokenizer.get_vocab().values())) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vocabulary and the special ids, 16 hex digits."""
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        return hashlib.sha256(repr((vocabulary, self.prefix_ids, self.suffix_ids)).encode()).hexdigest()[:16]


def _auto_tokenizer(name_or_folder: str | Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(name_or_folder))


def _why_not(name_or_folder: str | Path, error: Exception) -> str:
    """The reason why no tokenizer was loaded, for messages."""
    folder = Path(name_or_folder)
    if folder.is_dir() and not any(folder.glob("tokenizer*")):
        return "the folder has none (no tokenizer.json, tokenizer.model or tokenizer_config.json)"
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _special_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that `tokenizer` adds before and after a text."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    whole = tokenizer.encode("a")
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    raise ConfigError("cannot tell which special ids this tokenizer adds around a text")


def _byte_level(text: str) -> str:
    """`text` in the alphabet of byte-level BPE (GPT-2), in which every byte is a visible character."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    return "".join(alphabet[byte] for byte in text.encode())


def _keeps_length(normalizer: Any) -> bool:
    """Whether a normaliser removes nothing but white space."""
    if normalizer is None:
        return True
    if normalizer["type"] == "Sequence":
        return all(map(_keeps_length, normalizer["normalizers"]))
    if normalizer["type"] == "Replace":
        return not str(normalizer["pattern"].get("String", "x")).strip()
    return normalizer["type"] in ("Prepend", "Strip")


def _visible(piece: str) -> str:
    """A byte-level piece without the characters that represent white space."""
    return piece.translate(dict.fromkeys(map(ord, _byte_level(" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"))))


def _utf8(piece: str) -> bytes:
    return "".join(piece.replace("\u2581", " ").split()).encode()
