"""The tokenizer of a GGUF file: read by transformers, and corrected where its ids would differ from the file's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ragalign.errors import GenerationError
from ragalign.models.gguf import LIKE_LLAMA_3, Header

logger = logging.getLogger(__name__)

# llama.cpp's token type for pieces that are matched whole.
_USER_DEFINED = 4

# Rules that split every digit separately and the rest as GPT-2 (llama.cpp, src/llama-vocab.cpp). transformers' reader
# (5.19) supports none of them and splits as GPT-2.
_SINGLE_DIGITS = frozenset(["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"])
# Rules that split as GPT-2.
_LIKE_GPT2 = frozenset(["", "default", "gpt-2", "phi-2", "jina-es", "jina-de", "olmo", "mpt", "gigachat"])

_PROBES = (
    "The capital of France is",
    "  two  spaces,\n\n\ta tab and\r\nlines ",
    "In 1871, 3.14159 times 2,000 is 6283.18.",
    "def f(x):\n        return {'a': [x, -1]}  # ünïcödé, 你好世界, 🙂",
)


def write_tokenizer(path: Path, header: Header, folder: Path, label: str) -> None:
    """Write the tokenizer of a GGUF file into `folder`, and check it against the file.

    Raises:
        GenerationError: ids and tokens differ from those of the file.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The plain class: AutoTokenizer would parse the header again, for a class that is not needed.
    loaded = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
    backend = _mended(loaded.backend_tokenizer.to_str(), header, label)
    names = {"bos_token": header.bos_id, "eos_token": header.eos_id}
    tokens = {name: header.tokens[id_] for name, id_ in names.items() if id_ is not None}
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=loaded.unk_token,
        pad_token=loaded.pad_token,
        chat_template=loaded.chat_template,
        clean_up_tokenization_spaces=False,
        **tokens,
    ).save_pretrained(folder)
    _check(AutoTokenizer.from_pretrained(folder), header, label)


def _mended(serialised: str, header: Header, label: str) -> Any:
    """The backend with the file's BOS and EOS, its rule for splitting text, and all tokens that are matched whole."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    # transformers adds the special tokens of its classes, such as <|endoftext|>, beyond the file's vocabulary.
    parts = json.loads(serialised)
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["id"] < len(header.tokens)]
    backend = Tokenizer.from_str(json.dumps(parts))
    if header.tokenizer == "gpt2":
        if header.splits_like in _SINGLE_DIGITS:
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        elif header.splits_like not in _LIKE_GPT2 | _known_splits():
            logger.warning(
                "%s splits text by the rule %r, which transformers' reader does not support: ids can differ from those "
                "that the model was trained on; use the original tokenizer with --tokenizer",
                label,
                header.splits_like,
            )
        if header.splits_like in LIKE_LLAMA_3:  # pieces of the vocabulary are never assembled by merges
            backend.model.ignore_merges = True
    elif header.tokenizer == "llama":
        _like_sentencepiece(backend, header)
    begin = [(header.tokens[header.bos_id], header.bos_id)] if header.adds_bos and header.bos_id is not None else []
    end = [(header.tokens[header.eos_id], header.eos_id)] if header.adds_eos and header.eos_id is not None else []
    first, second = ([f"{token}:{type_}" for token, _ in begin] for type_ in (0, 1))
    last, final = ([f"{token}:{type_}" for token, _ in end] for type_ in (0, 1))
    backend.post_processor = TemplateProcessing(
        single=[*first, "$A:0", *last],
        pair=[*first, "$A:0", *last, *second, "$B:1", *final],
        special_tokens=begin + end,
    )
    return backend


def _like_sentencepiece(backend: Any, header: Header) -> None:
    """Handle spaces like SentencePiece; transformers' reader gives other ids to leading spaces and long runs."""
    from tokenizers import AddedToken, decoders, normalizers

    space = normalizers.Replace(" ", "\u2581")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.pre_tokenizer = None
    if header.adds_space:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), space])
        backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
        return
    backend.normalizer, backend.decoder = space, decoders.Sequence(parts)
    # User-defined pieces are matched whole, longest first. Spaces in them have become U+2581 by now.
    there = backend.get_vocab()
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    spelled = [
        token.replace(" ", "\u2581")
        for token, kind in zip(header.tokens, header.token_types, strict=False)
        if kind == _USER_DEFINED
    ]
    backend.add_tokens(
        [AddedToken(token, normalized=True) for token in spelled if token in there and token not in added]
    )


def _known_splits() -> frozenset[str]:
    """The rules that transformers' reader supports; older versions support none."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return frozenset()
    return frozenset(GGUF_PRE_TOKENIZER_SPLITS)


def _check(tokenizer: Any, header: Header, label: str) -> None:
    """Compare a loaded tokenizer with the file: its ids, the special tokens around a text, and decoding."""
    last = max(tokenizer.get_vocab().values(), default=-1)
    if last >= len(header.tokens):
        raise GenerationError(f"{label}: the tokenizer has the id {last}, the file only {len(header.tokens):,} tokens")
    for id_ in (header.bos_id, header.eos_id):
        if id_ is not None and tokenizer.convert_tokens_to_ids(header.tokens[id_]) != id_:
            raise GenerationError(f"{label}: the tokenizer and the file have different ids for {header.tokens[id_]!r}")
    for text in _PROBES:
        plain = tokenizer.encode(text, add_special_tokens=False)
        around = [header.bos_id] * header.adds_bos, [header.eos_id] * header.adds_eos
        if tokenizer.encode(text) != [*around[0], *plain, *around[1]]:
            raise GenerationError(f"{label}: the tokenizer does not add BOS and EOS as specified in the file")
        if tokenizer.decode(plain).strip(" ") != text.strip(" "):
            logger.warning(
                "%s: the tokenizer does not decode %r to the same text; check it before you rely on it", label, text
            )
