"""The encoder that everybody uses: a sentence-transformers model. The only module that imports it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ragalign._progress import progress
from ragalign.encoders.base import Encoder, Precision, TextKind
from ragalign.encoders.cache import EmbeddingCache, default_cache_folder
from ragalign.encoders.digest import content_digest
from ragalign.encoders.locate import Located, locate, locate_downloaded
from ragalign.encoders.quiet import quiet
from ragalign.errors import ConfigError, DataError

_BATCH_SIZE = 32
# What an interrupted encoding loses at most: a few seconds on a CPU. A multiple of the batch size.
_CHUNK_SIZE = 16 * _BATCH_SIZE


class SentenceTransformerEncoder(Encoder):
    """A loaded sentence-transformers model; made by `Encoder.load`."""

    def __init__(
        self,
        model: Any,
        located: Located,
        folder: Path,
        *,
        normalize: bool,
        query_prompt: str | None,
        document_prompt: str | None,
        precision: Precision,
        cache: Path | None,
    ) -> None:
        self._model = model
        self._precision: Precision = precision
        self._located = located
        self._folder = folder
        self._normalize = normalize
        own: dict[str, str] = {name: prompt for name, prompt in model.prompts.items() if prompt}
        self._prompts: dict[TextKind, str] = {
            "query": own.get("query", "") if query_prompt is None else query_prompt,
            "document": own.get("document", "") if document_prompt is None else document_prompt,
        }
        self._cache_folder = cache

    @property
    def id(self) -> str:
        """Hub id, or absolute folder."""
        return self._located.id

    @property
    def revision(self) -> str:
        """The hub commit where it is known, otherwise `content_digest`."""
        return self._located.commit or self.content_digest

    @cached_property
    def dimension(self) -> int:
        """Length of the vectors."""
        # Renamed in sentence-transformers 5.
        named = getattr(self._model, "get_embedding_dimension", None) or self._model.get_sentence_embedding_dimension
        known = named()
        return int(known) if known else len(self._model.encode(""))

    @property
    def normalize(self) -> bool:
        """Whether vectors are scaled to length 1."""
        return self._normalize

    @property
    def query_prompt(self) -> str:
        """Text that is put before every query."""
        return self._prompts["query"]

    @property
    def document_prompt(self) -> str:
        """Text that is put before every text that is indexed."""
        return self._prompts["document"]

    @cached_property
    def pooling(self) -> str:
        """How token vectors become one vector, such as ``mean``; empty where the model does it otherwise."""
        return "+".join(mode for module in self._model if (mode := _pooling_mode(module)))

    @property
    def precision(self) -> Precision:
        """Of the weights."""
        return self._precision

    @property
    def packaged(self) -> bool:
        """Whether the weights come from the package of the ``offline`` extra."""
        return self._located.packaged

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 over weights, configuration and tokenizer."""
        return self._located.digest or content_digest(self._folder)

    def encode(
        self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Encode texts: float32, C-contiguous, ``[n, dimension]``. Equal texts are encoded once.

        Documents go through the embedding cache; queries do not, they would only fill it.

        Raises:
            ConfigError: `kind` is neither ``document`` nor ``query``.
            DataError: a text cannot be tokenized, such as one with a lone surrogate.
        """
        if kind not in self._prompts:
            raise ConfigError(f"kind is 'document' or 'query', not {kind!r}")
        if isinstance(texts, str):
            raise ConfigError("encode takes a sequence of texts, not one text")
        slots: dict[str, int] = {}
        rows = np.fromiter((slots.setdefault(text, len(slots)) for text in texts), dtype=np.int64, count=len(texts))
        unique = list(slots)
        vectors = np.empty((len(unique), self.dimension), dtype=np.float32)
        prompt = self._prompts[kind]
        cache = None
        if self._cache_folder is not None and kind == "document":
            cache = EmbeddingCache(self._cache_folder / f"{self.fingerprint}.sqlite", self.dimension)
        missing = list(range(len(unique))) if cache is None else cache.read(prompt, unique, vectors)
        # Longest first across chunks too, so that chunking pads no more than one call would.
        missing.sort(key=lambda position: -len(unique[position]))
        size = _CHUNK_SIZE if cache is not None or show_progress else max(1, len(missing))
        bar = progress("encoding", len(missing), "texts") if show_progress else nullcontext(_ignore)
        with bar as advance:
            for start in range(0, len(missing), size):
                chunk = missing[start : start + size]
                vectors[chunk] = self._encode_chunk([unique[position] for position in chunk], prompt)
                if cache is not None:
                    cache.write(prompt, [unique[position] for position in chunk], vectors[chunk])
                advance(len(chunk))
        return vectors if len(unique) == len(texts) else vectors[rows]

    def _encode_chunk(self, texts: list[str], prompt: str) -> NDArray[np.float32]:
        try:
            encoded = self._model.encode(
                texts,
                prompt=prompt,
                batch_size=_BATCH_SIZE,
                # A length of 1 to the last bit takes float32, so coarser vectors are scaled afterwards.
                normalize_embeddings=self._normalize and self._precision == "float32",
                show_progress_bar=False,
            )
        except (TypeError, UnicodeEncodeError) as error:
            raise DataError(f"a text cannot be encoded: {error}") from None
        vectors: NDArray[np.float32] = np.asarray(encoded, dtype=np.float32)
        if self._normalize and self._precision != "float32":
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def load_sentence_transformer(
    id_or_folder: str | Path,
    *,
    revision: str | None,
    normalize: bool,
    query_prompt: str | None,
    document_prompt: str | None,
    device: str | None,
    precision: Precision | Literal["auto"],
    cache: Path | Literal["default"] | None,
) -> SentenceTransformerEncoder:
    """See `Encoder.load`."""
    if precision not in ("auto", *get_args(Precision)):
        raise ConfigError(f"precision is 'auto', 'float32' or 'bfloat16', not {precision!r}")
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
            # Anything may go wrong in foreign weights and code; the user needs one line of it.
            reason = str(error).strip().splitlines()
            raise ConfigError(f"cannot load the encoder {located.id!r}: {reason[0] if reason else error!r}") from error
    chosen = _precision_of(model.device.type) if precision == "auto" else precision
    if chosen == "bfloat16":
        model = model.bfloat16()
    return SentenceTransformerEncoder(
        model,
        located,
        folder,
        normalize=normalize,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        precision=chosen,
        cache=default_cache_folder() if cache == "default" else None if cache is None else Path(cache),
    )


def _precision_of(device: str) -> Precision:
    """What ``auto`` means on a kind of device."""
    import torch

    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device != "cpu":
        return "float32"
    # Without such instructions torch converts back and forth, which is slower than float32.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def _pooling_mode(module: Any) -> str:
    """The mode of a pooling module, empty for any other; before version 6 only a method told it."""
    if type(module).__name__ != "Pooling":
        return ""
    mode = module.pooling_mode if hasattr(module, "pooling_mode") else module.get_pooling_mode_str()
    return mode if isinstance(mode, str) else "+".join(mode)


def _ignore(_done: int) -> None:
    """Progress that nobody watches."""
