"""Options that all commands with a model share, and what they mean for a recipe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from ragalign.types import Decoding

# Typer reads Optional[...] at run time.
Model = Annotated[
    str, typer.Option(help="Folder, GGUF file or hub id of a base model, or packaged:gemma-3-270m.", show_default=False)
]
Backend = Annotated[
    str, typer.Option(help="What runs the model: auto, vllm, transformers, or the URL of an OpenAI-compatible server.")
]
Tokenizer = Annotated[
    Optional[str], typer.Option(help="The model's tokenizer, where it is not with the model.", show_default=False)
]
ContextLength = Annotated[
    Optional[int],
    typer.Option(min=1, help="Tokens that prompt and completion share; the model's by default.", show_default=False),
]
MaxNewTokens = Annotated[Optional[int], typer.Option(help="Most tokens of an answer.", show_default=False)]
Temperature = Annotated[Optional[float], typer.Option(help="0 is greedy.", show_default=False)]
TopP = Annotated[Optional[float], typer.Option(help="Nucleus sampling.", show_default=False)]
Seed = Annotated[Optional[int], typer.Option(help="For answers that can be repeated.", show_default=False)]
Samples = Annotated[Optional[int], typer.Option("--n", help="Answers per query.", show_default=False)]


def override(decoding: Decoding, **given: Any) -> Decoding:
    """A recipe's decoding with what the command line gives; None leaves a value as it is."""
    from ragalign.generation import validate

    changed = replace(decoding, **{name: value for name, value in given.items() if value is not None})
    validate(changed)
    return changed
