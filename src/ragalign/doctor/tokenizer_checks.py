"""Checks of a tokenizer: its vocabulary, its chat template, and special tokens in templates."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ragalign.doctor.checks import Check
from ragalign.doctor.subject import Subject

# Names of special tokens: <|im_start|>, <s>, <start_of_turn>, [INST].
_LOOKS_SPECIAL = re.compile(r"<\|[\w-]+\|>|</?s>|</?[a-z]+(?:_[a-z]+)+>|\[/?[A-Z_]{3,}\]|<<SYS>>|<\uff5c[^<>]+\uff5c>")
_PROBES = ("The capital of France is", "  two  spaces,\n\n\ta tab", "3.14 and 1871", "naïve 你好 🙂")


def vocabulary(subject: Subject) -> Iterator[Check]:
    """Check that ids fit the embedding, and that decoding restores texts."""
    raw, size = subject.raw_tokenizer, int(getattr(subject.config, "vocab_size", 0))
    last = max(raw.get_vocab().values())
    if size and last >= size:
        yield Check(
            "tokenizer",
            "wrong",
            f"the tokenizer has the id {last:,}, but the model only {size:,} tokens: they do not belong together",
        )
        return
    changed = [
        text
        for text, ids in zip(_PROBES, subject.tokenizer.encode_batch(_PROBES), strict=True)
        if raw.decode(ids).strip(" ") != text.strip(" ")
    ]
    if changed:
        yield Check("tokenizer", "warning", f"{changed[0]!r} changes when it is encoded and decoded")
    else:
        yield Check("tokenizer", "ok", f"{last + 1:,} tokens of {size:,}; decoding restores texts")


def kind(subject: Subject) -> Iterator[Check]:
    """Check whether the model is base or chat-tuned, by its chat template."""
    template = getattr(subject.raw_tokenizer, "chat_template", None)
    if not template:
        yield Check("kind", "ok", "a base model: there is no chat template")
        return
    yield Check(
        "kind",
        "warning",
        "there is a chat template, so the model is chat-tuned and works better with that template than with "
        "demonstrations; in-context alignment is for base models",
    )
    text = template if isinstance(template, str) else " ".join(map(str, template.values()))
    known = subject.raw_tokenizer.get_vocab()
    missing = sorted(token for token in set(_LOOKS_SPECIAL.findall(text)) if token not in known)
    if missing:
        yield Check("special-tokens", "wrong", f"the chat template needs {_list(missing)}, which the tokenizer lacks")


def special_tokens(subject: Subject) -> Iterator[Check]:
    """Check the recipe's template for special tokens, since prompts are plain text."""
    template, _ = subject.recipe.make_template()
    own = template.preamble + template.opening + template.middle + template.closing + template.cue
    known = subject.raw_tokenizer.get_vocab()
    looks = set(_LOOKS_SPECIAL.findall(own)) | {token for token in subject.tokenizer.special_tokens if token in own}
    missing = sorted(token for token in looks if token not in known)
    if missing:
        yield Check(
            "special-tokens",
            "wrong",
            f"the template {template.name!r} needs {_list(missing)}, which the tokenizer does not have: "
            "use a template of plain text",
        )
    elif looks:
        yield Check(
            "special-tokens",
            "wrong",
            f"the template {template.name!r} has {_list(sorted(looks))}, but prompts for base models are plain "
            "text; use a template without special tokens",
        )
    else:
        yield Check("special-tokens", "ok", f"the template {template.name!r} needs none")


def _list(tokens: list[str]) -> str:
    return ", ".join(tokens[:5]) + (f" and {len(tokens) - 5} more" if len(tokens) > 5 else "")
