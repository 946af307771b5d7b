"""Sentence-transformers models. The only module that imports the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ragalign.encoders.digest import content_digest
from ragalign.encoders.locate import Located, locate, locate_downloaded
from ragalign.encoders.quiet import quiet
from ragalign.errors import ConfigError, DataError

Precision = Literal["float32", "bfloat16"]

BATCH_SIZE = 32


class SentenceTransformerModel:
    """A loaded model; create it with `load_model`.

    Attributes:
        located: the location of its files.
        precision: the precision of its weights.
        prompts: the model's own prompts by name; often none.
    """

    def __init__(self, model: Any, located: Located, folder: Path, precision: Precision) -> None:
        self._model = model
        self._folder = folder
        self.located = located
        self.precision = precision
        self.prompts: Mapping[str, str] = {name: prompt for name, prompt in model.prompts.items() if prompt}

    @cached_property
    def dimension(self) -> int:
        """Length of the vectors."""
        # Renamed in sentence-transformers 5.
        named = getattr(self._model, "get_embedding_dimension", None) or self._model.get_sentence_embedding_dimension
        known = named()
        return int(known) if known else len(self._model.encode(""))

    @cached_property
    def pooling(self) -> str:
        """The pooling mode, such as ``mean``; empty if the model has no pooling module."""
        return "+".join(mode for module in self._model if (mode := _pooling_mode(module)))

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 over weights, configuration and tokenizer."""
        return self.located.digest or content_digest(self._folder)

    @cached_property
    def max_tokens(self) -> int | None:
        """Maximum tokens of a text, special tokens included; None if unknown."""
        limit = getattr(self._model, "max_seq_length", None)
        return int(limit) if isinstance(limit, int | float) and limit > 0 and self._tokenizer is not None else None

    def encode(self, texts: list[str], prompt: str, *, normalize: bool) -> NDArray[np.float32]:
        """Encode texts with a prompt prepended: float32 ``[n, d]``.

        Raises:
            DataError: a text cannot be tokenized, such as one with a lone surrogate.
        """
        try:
            encoded = self._model.encode(
                texts,
                prompt=prompt,
                batch_size=BATCH_SIZE,
                # Exact unit length needs float32, so vectors of lower precision are scaled afterwards.
                normalize_embeddings=normalize and self.precision == "float32",
                show_progress_bar=False,
            )
        except (TypeError, UnicodeEncodeError) as error:
            raise DataError(f"a text cannot be encoded: {error}") from None
        vectors: NDArray[np.float32] = np.asarray(encoded, dtype=np.float32)
        if normalize and self.precision != "float32":
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, special tokens included, without truncation.

        Raises:
            ConfigError: the model has no tokenizer.
            DataError: a text cannot be tokenized, such as one with a lone surrogate.
        """
        if self._tokenizer is None:
            raise ConfigError(f"the encoder {self.located.id!r} has no tokenizer")
        options = {"truncation": False, "padding": False, "return_attention_mask": False, "verbose": False}
        try:
            encoded = self._tokenizer([text.strip() for text in texts], **options)
        except (TypeError, UnicodeEncodeError) as error:
            raise DataError(f"a text cannot be tokenized: {error}") from None
        return [len(ids) for ids in encoded["input_ids"]]

    @cached_property
    def _tokenizer(self) -> Any:
        """The transformers tokenizer; None for models without one."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self._model, "tokenizer", None)
        return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None


def load_model(
    id_or_folder: str | Path,
    *,
    revision: str | None,
    device: str | None,
    precision: Precision | Literal["auto"],
) -> SentenceTransformerModel:
    """See `ragalign.encoders.Encoder.load`."""
    if precision not in ("auto", *get_args(Precision)):
        raise ConfigError(f"precision must be 'auto', 'float32' or 'bfloat16', not {precision!r}")
    located = locate(id_or_folder, revision)
    with quiet():
        from sentence_transformers import SentenceTransformer

        try:
            if located.folder is not None:
                model = SentenceTransformer(str(located.folder), device=device, local_files_only=True)
                folder = located.folder
            else:
                model = SentenceTransformer(located.id, revision=located.commit, device=device)
                folder = locate_downloaded(located)
        except Exception as error:
            # Foreign weights and code can raise anything; show one line of it.
            reason = str(error).strip().splitlines()
            raise ConfigError(f"cannot load the encoder {located.id!r}: {reason[0] if reason else error!r}") from error
    chosen = fastest_precision(model.device.type) if precision == "auto" else precision
    if chosen == "bfloat16":
        model = model.bfloat16()
    return SentenceTransformerModel(model, located, folder, chosen)


def fastest_precision(device: str) -> Precision:
    """The precision in which a device computes fastest; what ``auto`` chooses."""
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device != "cpu":
        return "float32"
    # Without such instructions torch emulates bfloat16, which is slower than float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def _pooling_mode(module: Any) -> str:
    """The mode of a pooling module, or "" for other modules; before version 6 it was only available as a method."""
    if type(module).__name__ != "Pooling":
        return ""
    mode = module.pooling_mode if hasattr(module, "pooling_mode") else module.get_pooling_mode_str()
    return mode if isinstance(mode, str) else "+".join(mode)
