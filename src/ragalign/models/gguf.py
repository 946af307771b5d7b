"""Reading the headers of GGUF files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign._optional import require
from ragalign.errors import GenerationError

# llama.cpp's defaults for files that do not specify whether the tokenizer adds BOS (src/llama-vocab.cpp): SentencePiece
# models do; byte-level ones do not, unless they split text as Llama 3 or Mistral's tekken.
LIKE_LLAMA_3 = frozenset(
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"]
)
# llama.cpp's default ids for SentencePiece files that do not specify them.
_SENTENCEPIECE_BOS, _SENTENCEPIECE_EOS = 1, 2


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file on disk, for the model cache."""

    path: Path

    @property
    def label(self) -> str:
        """The name of the file in messages."""
        return str(self.path)

    def digest(self) -> str:
        """The SHA-256 of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def opened(self, _: Path) -> Iterator[Path]:
        """The file's path."""
        yield self.path.resolve()


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of a GGUF file's model and tokenizer.

    Attributes:
        architecture: llama.cpp's name, such as "gemma3".
        n_weights: number of values in all tensors.
        tensors: names of the tensors.
        tokens: the vocabulary, by id.
        token_types: llama.cpp's type of each token: 3 is a control token, 4 a user-defined token.
        tokenizer: the tokenizer's kind: "llama" is SentencePiece, "gpt2" byte-level.
        splits_like: name of the rule by which a byte-level tokenizer splits text before merging.
        adds_bos, adds_eos: whether the tokenizer adds these around a text.
        adds_space: whether a SentencePiece tokenizer adds a space before a text.
        bos_id, eos_id: the ids of BOS and EOS, or None.
    """

    architecture: str
    n_weights: int
    tensors: frozenset[str]
    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    tokenizer: str
    splits_like: str
    adds_bos: bool
    adds_eos: bool
    adds_space: bool
    bos_id: int | None
    eos_id: int | None


_READ = frozenset(
    {
        "split.count",
        "general.type",
        "general.architecture",
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
    }
)


def read_header(path: Path, label: str) -> Header:
    """Read a file's header.

    Args:
        path: the file.
        label: the name of the file in messages.

    Raises:
        GenerationError: the file is damaged, or is not a complete language model.
        MissingDependencyError: the package `gguf` is not installed.
    """
    gguf = require("gguf", "reading a GGUF file")
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items() if name in _READ}
        sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    # A damaged header can make the reader fail anywhere: past the end, in endless arrays, in invalid text.
    except Exception as error:
        raise damaged(label, error) from None
    return _header(values, sizes, label)


def _header(values: dict[str, Any], sizes: dict[str, int], label: str) -> Header:
    if int(values.get("split.count") or 0) > 1:
        raise GenerationError(
            f"{label} is one of {values['split.count']} parts of a split GGUF file; join them with llama.cpp's "
            "`llama-gguf-split --merge FIRST-PART OUT.gguf`"
        )
    kind = values.get("general.type", "model")
    architecture = str(values.get("general.architecture", ""))
    if kind != "model" or architecture in ("", "clip"):
        raise GenerationError(f"{label} is not a language model, but {kind!r} with the architecture {architecture!r}")
    tokens = values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not sizes:
        raise GenerationError(f"{label} has no {'weights' if tokens else 'tokenizer'}: it is not a complete model")
    tokenizer, rule = str(values.get("tokenizer.ggml.model", "")), str(values.get("tokenizer.ggml.pre", ""))
    sentencepiece = tokenizer == "llama"
    by_default = sentencepiece or (tokenizer == "gpt2" and rule in LIKE_LLAMA_3)
    bos = values.get("tokenizer.ggml.bos_token_id", _SENTENCEPIECE_BOS if sentencepiece else None)
    eos = values.get("tokenizer.ggml.eos_token_id", _SENTENCEPIECE_EOS if sentencepiece else None)
    for name, id_ in (("BOS", bos), ("EOS", eos)):
        if id_ is not None and not 0 <= id_ < len(tokens):
            raise GenerationError(f"{label} is damaged: its {name} is token {id_} of {len(tokens)}")
    return Header(
        architecture=architecture,
        n_weights=sum(sizes.values()),
        tensors=frozenset(sizes),
        tokens=tuple(tokens),
        token_types=tuple(values.get("tokenizer.ggml.token_type") or ()),
        tokenizer=tokenizer,
        splits_like=rule,
        adds_bos=bool(values.get("tokenizer.ggml.add_bos_token", by_default)) and bos is not None,
        adds_eos=bool(values.get("tokenizer.ggml.add_eos_token", tokenizer == "t5")) and eos is not None,
        adds_space=bool(values.get("tokenizer.ggml.add_space_prefix", True)),
        bos_id=bos,
        eos_id=eos,
    )


def damaged(label: str, error: Exception) -> GenerationError:
    """The error for a file that cannot be read, on one line."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return GenerationError(f"cannot read {label} as a GGUF model: {reason}")
