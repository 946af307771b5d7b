"""Cleaning whole answers."""

from __future__ import annotations

from dataclasses import replace

from ragalign.templates import Template
from ragalign.templates.streaming import CleanStream
from ragalign.types import Output


def cleaned(output: Output, template: Template) -> Output:
    """The answer as the template cleans it; it has stopped where it was over, however long the model wrote on."""
    clean = CleanStream(template)
    text = clean.push(output.text) + clean.finish(finished=output.finish_reason != "length")
    return replace(output, text=text, finish_reason="stop" if clean.ended else output.finish_reason)
