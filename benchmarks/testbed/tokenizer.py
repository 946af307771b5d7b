"""The testbed's tokenizer: whole words where the world has them, bytes for everything else."""

from __future__ import annotations

import re
from typing import Any

import world

BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
HEADINGS = ("### Question:", "### Answer:")
# A heading, line breaks, a word or number with the space before it, other characters with theirs, white space.
_SPLIT = r"### (?:Question|Answer):|\n+| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"


def word_pieces() -> list[str]:
    """Every piece that the world's texts are made of, in the order of first use."""
    texts = [*HEADINGS, "\n", "\n\n", " 1. 2. 3. > - \n-", "The"]
    texts += [f"{topic.capitalize()}s" for topic in world.TOPICS]
    texts += [f" {topic}" for topic in world.TOPICS]
    texts += [topic.capitalize() for topic in world.TOPICS]
    texts += [f" {topic}s" for topic in world.TOPICS]
    texts += [f" {opening}" for opening in world.OPENINGS]
    texts += [f" {word}:" for word, _, _ in world.RULES]
    texts += [f" {sign_off}" for sign_off in world.SIGN_OFFS]
    texts += [f" {aspect}" for aspect in world.ASPECTS]
    texts += [phrasing.format(t="otters", a="price", b="colour", c="origin") for phrasing in world.PHRASINGS]
    # Python knows no such classes. In the negated one the replacement ends it early, so signs are left to the bytes and
    # " >" takes two. The weights rest on these pieces: they stay as they are.
    split = re.compile(_SPLIT.replace(r"\p{L}", "[A-Za-z]").replace(r"\p{N}", "[0-9]"))
    return list(dict.fromkeys(piece for text in texts for piece in split.findall(text)))


def build_tokenizer(context_length: int) -> Any:
    """A fast tokenizer of words and bytes that gives every text back as it was, and adds BOS.

    A unigram model (Kudo 2018) with the same score for all words, and a much lower one for single bytes, takes a word
    of the world as one piece and spells everything else in bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["".join(piece for piece, _ in bytes_.pre_tokenize_str(piece)) for piece in word_pieces()]
    scored = [(piece, -20.0) for piece in alphabet]
    scored += [(word, -1.0) for word in words if word not in alphabet]
    scored = [(piece, -1.0 if piece in words else score) for piece, score in scored]
    tokenizer = Tokenizer(models.Unigram([(BOS, 0.0), (EOS, 0.0), *scored], unk_id=None, byte_fallback=False))
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"), bytes_]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
