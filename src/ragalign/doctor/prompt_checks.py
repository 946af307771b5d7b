"""Checks of prompts: room in the context, and tokens that are exact at every join."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from ragalign.doctor.checks import Check
from ragalign.doctor.subject import Subject
from ragalign.types import Hit, Turn

# Tokens that a question may have beside the recipe's own.
_QUESTION_TOKENS = 200
# Less than this for demonstrations holds hardly one.
_FEW_TOKENS = 300
_QUESTION = "How do I ask my manager for a raise without sounding ungrateful?"


def context(subject: Subject) -> Iterator[Check]:
    """Whether the recipe's budget and its longest answer fit into the context."""
    recipe, length = subject.recipe, subject.context_length
    if length is None:
        yield Check("context", "warning", "the configuration does not say how many tokens the model takes")
        return
    shows = recipe.retriever.name != "none" or recipe.constants.file or recipe.constants.pool
    demonstrations = recipe.packing.max_tokens if shows else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = subject.packer.pack([Turn("user", _QUESTION)], []).n_tokens + _QUESTION_TOKENS
    answer = recipe.decoding.max_tokens
    need = bare + demonstrations + answer
    parts = f"{demonstrations:,} of demonstrations, {answer:,} of the answer and about {bare:,} of all else"
    if need <= length:
        yield Check("context", "ok", f"{length:,} tokens; the recipe {recipe.name!r} needs at most {need:,}: {parts}")
        return
    left = length - bare - answer
    if left < (_FEW_TOKENS if demonstrations else 0):
        yield Check(
            "context",
            "wrong",
            f"{length:,} tokens, but the recipe {recipe.name!r} asks for {need:,}: {parts}; use fewer new tokens or "
            "another model",
        )
        return
    yield Check(
        "context",
        "warning",
        f"{length:,} tokens leave {left:,} for demonstrations; the recipe {recipe.name!r} would show up to "
        f"{demonstrations:,}",
    )


def joins(subject: Subject) -> Iterator[Check]:
    """Whether packed ids are those of the prompt's text, over demonstrations of all kinds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packer = subject.packer
    tokenizer, n = subject.tokenizer, 0
    for start in range(0, len(subject.starter), 10):
        hits = [Hit(id_, 1.0, rank) for rank, id_ in enumerate(subject.starter.ids[start : start + 10], 1)]
        prompt = packer.pack([Turn("user", _QUESTION)], hits)
        whole = [*tokenizer.prefix_ids, *tokenizer.encode(prompt.text), *tokenizer.suffix_ids]
        n += 1
        # A prompt is continued, so what the tokenizer puts after a text is left out.
        if prompt.token_ids not in (whole, whole[: len(whole) - len(tokenizer.suffix_ids)]):
            yield Check("joins", "wrong", "a packed prompt has other ids than its text: please report this tokenizer")
            return
    slow, fast = "each prompt is tokenised as a whole, which is slower", "each demonstration is tokenised once"
    how = fast if packer.has_safe_joins else slow
    yield Check("joins", "ok", f"the ids of {n} packed prompts are those of their texts; {how}")
