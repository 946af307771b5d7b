"""What an encoder is: the interface that indexes and retrievers build on."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

TextKind = Literal["document", "query"]
Precision = Literal["float32", "bfloat16"]

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"


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
        """Load a sentence-transformers model, or a plain transformers model with mean pooling.

        A hub id is looked up on the hub; where the hub cannot be reached, in the local hub cache; and for
        `DEFAULT_ENCODER` at last in the package of the ``offline`` extra.

        Args:
            id_or_folder: hub id, or a folder with a saved model.
            revision: commit of a hub model, or the revision that an index records; None takes the newest.
            normalize: scale vectors to length 1.
            query_prompt: text put before every query; None takes the model's own, which most have not.
            document_prompt: the same for the texts that are indexed.
            device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes the best there is.
            precision: of the weights. ``bfloat16`` is about twice as fast on processors made for it, for vectors that
                find nearly the same neighbours (``benchmarks/encoders.py``); ``auto`` takes it where the processor has
                instructions for it (AVX512-BF16 or AMX, or a GPU that has it), and ``float32`` elsewhere.
            cache: folder of the embedding cache; ``"default"`` is ``$RAGALIGN_CACHE/embeddings``, else
                ``ragalign/embeddings`` in the user's cache folder; None encodes everything anew.

        Raises:
            ConfigError: there is no such model, or it cannot be loaded.
        """
        from ragalign.encoders.sentence_transformer import load_sentence_transformer

        return load_sentence_transformer(
            id_or_folder,
            revision=revision,
            normalize=normalize,
            query_prompt=query_prompt,
            document_prompt=document_prompt,
            device=device,
            precision=precision,
            cache=cache,
        )

    @property
    @abstractmethod
    def id(self) -> str:
        """Hub id, or absolute folder."""

    @property
    @abstractmethod
    def revision(self) -> str:
        """The hub commit where it is known, otherwise `content_digest`."""

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
        """Text that is put before every query."""

    @property
    @abstractmethod
    def document_prompt(self) -> str:
        """Text that is put before every text that is indexed."""

    @property
    def pooling(self) -> str:
        """How token vectors become one vector, such as ``mean``; empty where the model does it otherwise."""
        return ""

    @property
    def precision(self) -> Precision:
        """Of the weights."""
        return "float32"

    @property
    def packaged(self) -> bool:
        """Whether the weights come from the package of the ``offline`` extra."""
        return False

    @property
    def content_digest(self) -> str:
        """What the weights and their configuration are, wherever they come from."""
        return self.revision

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over everything that changes a vector.

        It leaves the id out: the same weights give the same fingerprint from the hub, a folder or a package.
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
            texts: n texts; those longer than the model's limit are cut there by its tokenizer.
            kind: which of the two prompts is put before each text.
            show_progress: a bar on stderr, if that is a terminal.

        Returns:
            float32, C-contiguous, ``[n, dimension]``, in input order.
        """
