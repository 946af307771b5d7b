"""Cleaning answers, whole and as they are generated."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from ragalign.generator import ClosableIterator
from ragalign.templates import Template
from ragalign.templates.streaming import CleanStream
from ragalign.types import Delta, Output


def cleaned(output: Output, template: Template) -> Output:
    """The answer as the template cleans it; its finish reason is ``stop`` if the template ended it before the model."""
    clean = CleanStream(template)
    text = clean.push(output.text) + clean.finish(finished=output.finish_reason != "length")
    return replace(output, text=text, finish_reason="stop" if clean.ended else output.finish_reason)


def cleaned_parts(
    deltas: ClosableIterator[Delta], template: Template, on_end: Callable[[int | None], None]
) -> ClosableIterator[Delta]:
    """The parts of an answer as the template cleans them; together they are the text that `cleaned` gives.

    Args:
        deltas: the generated parts; closed when the answer is over or the result is closed.
        template: the prompt's.
        on_end: told the number of cached prompt tokens when the answer is over.
    """
    clean = CleanStream(template)
    with closing(deltas):
        for delta in deltas:
            text = clean.push(delta.text)
            reason = delta.finish_reason
            # The answer is over, but the model continues; where tokens are counted as they come, stop here.
            if clean.ended and (reason is not None or delta.n_tokens):
                reason = "stop"
            if reason is not None:
                on_end(delta.n_cached_tokens)
                text += clean.finish(finished=reason != "length")
            if text or reason is not None:
                yield replace(delta, text=text, finish_reason=reason)
            if reason is not None:
                break
