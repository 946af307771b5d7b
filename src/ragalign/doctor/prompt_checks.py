"""Checks of prompts: room in the context, and exact tokens at every join."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

from ragalign.doctor.checks import Check
from ragalign.doctor.subject import Subject
from ragalign.types import Hit, Turn

# Tokens to allow for a question, in addition to the recipe's own.
_QUESTION_TOKENS = 200
# With fewer tokens for demonstrations than this, hardly one fits.
_FEW_TOKENS = 300
_QUESTION = "How do I ask my manager for a raise without sounding ungrateful?"


def context(subject: Subject) -> Iterator[Check]:
    """Check that the recipe's budget and its longest answer fit the context."""
    recipe, length = subject.recipe, subject.context_length
    if length is None:
        yield Check("context", "warning", "the model's configuration has no context length")
        return
    shows = recipe.retriever.name != "none" or recipe.constants.file or recipe.constants.pool
    demonstrations = recipe.packing.max_tokens if shows else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = subject.packer.pack([Turn("user", _QUESTION)], []).n_tokens + _QUESTION_TOKENS
    answer = recipe.decoding.max_tokens
    need = bare + demonstrations + answer
    parts = f"{demonstrations:,} of demonstrations, {answer:,} of the answer and about {bare:,} of everything else"
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
    """Check that packed ids equal those of the prompt's text, for demonstrations of all kinds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packer = subject.packer
    tokenizer, n = subject.tokenizer, 0
    for start in range(0, len(subject.starter), 10):
        hits = [Hit(id_, 1.0, rank) for rank, id_ in enumerate(subject.starter.ids[start : start + 10], 1)]
        prompt = packer.pack([Turn("user", _QUESTION)], hits)
        whole = [*tokenizer.prefix_ids, *tokenizer.encode(prompt.text), *tokenizer.suffix_ids]
        n += 1
        # A prompt is continued, so special tokens after a text are left out.
        if prompt.token_ids not in (whole, whole[: len(whole) - len(tokenizer.suffix_ids)]):
            reason = "the ids of a packed prompt differ from those of its text; please report this tokenizer"
            yield Check("joins", "wrong", reason)
            return
    slow, fast = "each prompt is tokenised as a whole, which is slower", "each demonstration is tokenised once"
    how = fast if packer.has_safe_joins else slow
    yield Check("joins", "ok", f"the ids of {n} packed prompts equal those of their texts; {how}")
