"""The encoder interface, and the encoder that loads a sentence-transformers model."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ragalign._progress import progress
from ragalign.encoders.cache import EmbeddingCache, default_cache_folder
from ragalign.encoders.locate import DEFAULT_ENCODER
from ragalign.encoders.sentence_transformer import BATCH_SIZE, Precision, SentenceTransformerModel, load_model
from ragalign.errors import ConfigError

TextKind = Literal["document", "query"]

# An interrupted encoding loses at most one chunk, a few seconds on a CPU. A multiple of the batch size.
_CHUNK_SIZE = 16 * BATCH_SIZE
# A text never has more tokens than bytes, apart from the special tokens around it.
_MAX_SPECIAL_TOKENS = 8


class Encoder(ABC):
    """Turns texts into float32 vectors."""

    @classmethod
    def load(
        cls,
        id_or_folder: str | Path = DEFAULT_ENCODER,
        *,
        revision: str | None = None,
        normalize: bool = True,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        device: str | None = None,
        precision: Precision | Literal["auto"] = "float32",
        cache: Path | Literal["default"] | None = "default",
    ) -> Encoder:
        """Load a sentence-transformers model, or a transformers model with mean pooling.

        A Hub id is looked up on the Hub or, if the Hub cannot be reached, in the local Hub cache. `DEFAULT_ENCODER`
        also comes in the package of the ``offline`` extra.

        Args:
            id_or_folder: Hub id, or a folder with a saved model.
            revision: commit of a Hub model, or the revision recorded in an index; None is the newest.
            normalize: scale vectors to length 1.
            query_prompt: text to prepend to queries; None is the model's own prompt, usually empty.
            document_prompt: the same for indexed texts.
            device: ``cpu``, ``cuda``, ``cuda:1``, ...; None is the best available device.
            precision: of the weights. ``bfloat16`` is about twice as fast on processors with instructions for it, and
                its vectors find nearly the same neighbours (``benchmarks/encoders.py``). ``auto`` is ``bfloat16`` on
                such processors (AVX512-BF16, AMX, or a GPU with support) and ``float32`` on others.
            cache: folder of the embedding cache; ``"default"`` is ``$RAGALIGN_CACHE/embeddings``, else
                ``ragalign/embeddings`` in the user's cache folder; None disables the cache.

        Raises:
            ConfigError: no such model, or it cannot be loaded.
        """
        model = load_model(id_or_folder, revision=revision, device=device, precision=precision)
        return _LoadedEncoder(
            model,
            normalize=normalize,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            cache=default_cache_folder() if cache == "default" else None if cache is None else Path(cache),
        )

    @property
    @abstractmethod
    def id(self) -> str:
        """The Hub id, or the absolute folder."""

    @property
    @abstractmethod
    def revision(self) -> str:
        """The Hub commit if known, otherwise `content_digest`."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Length of the vectors."""

    @property
    @abstractmethod
    def normalize(self) -> bool:
        """Whether vectors are scaled to length 1."""

    @property
    @abstractmethod
    def query_prompt(self) -> str:
        """The text prepended to queries."""

    @property
    @abstractmethod
    def document_prompt(self) -> str:
        """The text prepended to indexed texts."""

    @property
    def pooling(self) -> str:
        """The pooling mode, such as ``mean``; empty if the model has no pooling module."""
        return ""

    @property
    def precision(self) -> Precision:
        """The precision of the weights."""
        return "float32"

    @property
    def max_tokens(self) -> int | None:
        """Maximum tokens of a text, special tokens and prompt included; None if unknown. Longer texts are truncated."""
        return None

    @property
    def packaged(self) -> bool:
        """Whether the weights are those of the ``offline`` extra."""
        return False

    @property
    def content_digest(self) -> str:
        """A hash of the weights, configuration and tokenizer, independent of their location."""
        return self.revision

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that affects the vectors.

        The id is not included: equal weights have the same fingerprint on the Hub, in a folder or in a package.
        """
        parts = [
            self.content_digest,
            self.dimension,
            self.normalize,
            self.pooling,
            self.query_prompt,
            self.document_prompt,
        ]
        if self.precision != "float32":
            parts.append(self.precision)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @abstractmethod
    def encode(
        self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Encode texts.

        Args:
            texts: n texts; texts longer than `max_tokens` are truncated (see `truncated`).
            kind: which of the two prompts to prepend.
            show_progress: show a progress bar on stderr, if that is a terminal.

        Returns:
            float32, C-contiguous, ``[n, dimension]``, in input order.
        """

    def truncated(self, texts: Sequence[str], *, kind: TextKind = "document") -> NDArray[np.bool_]:
        """Which texts are longer than `max_tokens`, so that their vectors ignore the end: bool ``[n]``.

        Args:
            texts: n texts.
            kind: which of the two prompts to prepend.
        """
        return np.zeros(len(texts), dtype=np.bool_)


class CachedEncoder(Encoder):
    """An encoder that encodes equal texts once and keeps documents' vectors in the embedding cache.

    Attributes:
        cache_folder: where the embedding cache is; None for none.
    """

    cache_folder: Path | None = None

    def encode(
        self, texts: Sequence[str], *, kind: TextKind = "document", show_progress: bool = False
    ) -> NDArray[np.float32]:
        """Encode texts: float32, C-contiguous, ``[n, dimension]``. Equal texts are encoded once.

        Only documents use the embedding cache: queries would fill it for little benefit.

        Raises:
            ConfigError: `kind` is neither ``document`` nor ``query``.
            DataError: a text cannot be tokenized, such as one with a lone surrogate.
            GenerationError: encoding on a cluster failed.
        """
        if kind not in get_args(TextKind):
            raise ConfigError(f"kind must be 'document' or 'query', not {kind!r}")
        if isinstance(texts, str):
            raise ConfigError("encode takes a sequence of texts, not one text")
        slots: dict[str, int] = {}
        rows = np.fromiter((slots.setdefault(text, len(slots)) for text in texts), dtype=np.int64, count=len(texts))
        unique = list(slots)
        vectors = np.empty((len(unique), self.dimension), dtype=np.float32)
        prompt = self.document_prompt if kind == "document" else self.query_prompt
        cache = None
        if self.cache_folder is not None and kind == "document":
            cache = EmbeddingCache(self.cache_folder / f"{self.fingerprint}.sqlite", self.dimension)
        missing = list(range(len(unique))) if cache is None else cache.read(prompt, unique, vectors)
        # Longest first: a batch is padded to its longest text.
        missing.sort(key=lambda position: -len(unique[position]))
        in_chunks = cache is not None or show_progress
        bar = progress("encoding", len(missing), "texts") if show_progress else nullcontext(_ignore)
        with bar as advance:
            if missing:
                for done, found in self._encoded([unique[place] for place in missing], kind, in_chunks=in_chunks):
                    places = [missing[row] for row in done]
                    vectors[places] = found
                    if cache is not None:
                        cache.write(prompt, [unique[place] for place in places], found)
                    advance(len(places))
        return vectors if len(unique) == len(texts) else vectors[rows]

    @abstractmethod
    def _encoded(
        self, texts: list[str], kind: TextKind, *, in_chunks: bool
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Encode different texts, yielding (rows, vectors ``[m, d]``) in any order.

        Args:
            texts: one text or more, longest first.
            kind: which of the two prompts to prepend.
            in_chunks: whether to yield often, so that progress shows and an interruption loses little.
        """


class _LoadedEncoder(CachedEncoder):
    """An encoder over a sentence-transformers model."""

    def __init__(
        self,
        model: SentenceTransformerModel,
        *,
        normalize: bool,
        query_prompt: str | None,
        document_prompt: str | None,
        cache: Path | None,
    ) -> None:
        self._model = model
        self._normalize = normalize
        self._prompts: dict[TextKind, str] = {
            "query": model.prompts.get("query", "") if query_prompt is None else query_prompt,
            "document": model.prompts.get("document", "") if document_prompt is None else document_prompt,
        }
        self.cache_folder = cache

    @property
    def id(self) -> str:
        return self._model.located.id

    @property
    def revision(self) -> str:
        return self._model.located.commit or self.content_digest

    @property
    def dimension(self) -> int:
        return self._model.dimension

    @property
    def normalize(self) -> bool:
        return self._normalize

    @property
    def query_prompt(self) -> str:
        return self._prompts["query"]

    @property
    def document_prompt(self) -> str:
        return self._prompts["document"]

    @property
    def pooling(self) -> str:
        return self._model.pooling

    @property
    def precision(self) -> Precision:
        return self._model.precision

    @property
    def max_tokens(self) -> int | None:
        return self._model.max_tokens

    @property
    def packaged(self) -> bool:
        return self._model.located.packaged

    @property
    def content_digest(self) -> str:
        return self._model.content_digest

    def _encoded(
        self, texts: list[str], kind: TextKind, *, in_chunks: bool
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        size = _CHUNK_SIZE if in_chunks else len(texts)
        for start in range(0, len(texts), size):
            chunk = texts[start : start + size]
            vectors = self._model.encode(chunk, self._prompts[kind], normalize=self._normalize)
            yield list(range(start, start + len(chunk))), vectors

    def truncated(self, texts: Sequence[str], *, kind: TextKind = "document") -> NDArray[np.bool_]:
        found = np.zeros(len(texts), dtype=np.bool_)
        limit = self.max_tokens
        if limit is None:
            return found
        prompted = [self._prompts[kind] + text for text in texts]
        long = [
            position
            for position, text in enumerate(prompted)
            if len(text.encode("utf-8", "replace")) + _MAX_SPECIAL_TOKENS > limit
        ]
        for start in range(0, len(long), _CHUNK_SIZE):
            chunk = long[start : start + _CHUNK_SIZE]
            counts = self._model.count_tokens([prompted[position] for position in chunk])
            found[chunk] = np.array(counts) > limit
        return found


def _ignore(_done: int) -> None:
    """Do nothing, where progress is not shown."""
