"""`ragalign chat`: talk to an aligned base model in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, decoding, prompts

if TYPE_CHECKING:
    from ragalign.aligner import Aligner
    from ragalign.types import Decoding, Turn


def chat(
    index: Annotated[Path, typer.Argument(metavar="DIR", help="The index.")],
    model: decoding.Model,
    question: Annotated[Optional[str], typer.Argument(help="Ask this one question and leave.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a TOML file.")] = "ica",
    backend: decoding.Backend = "auto",
    tokenizer: decoding.Tokenizer = None,
    context_length: decoding.ContextLength = None,
    max_new_tokens: decoding.MaxNewTokens = None,
    temperature: decoding.Temperature = None,
    top_p: decoding.TopP = None,
    seed: decoding.Seed = None,
    json: Annotated[bool, typer.Option("--json", help="With a question: the answer and its prompt as JSON.")] = False,
) -> None:
    """Chat with a base model. An empty line or Ctrl-D ends the conversation, /new begins another.

    \b
    Examples:
      ragalign chat indexes/lima --model meta-llama/Llama-2-13b-hf
      ragalign chat indexes/lima "How do brain cells move?" \\
          --model ./llama-2-13b --json
    """
    from ragalign.aligner import Aligner
    from ragalign.errors import ConfigError
    from ragalign.recipes import Recipe

    if json and question is None:
        raise ConfigError("--json goes with a question")
    chosen = Recipe.load(recipe)
    settings = decoding.override(
        chosen.decoding, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    aligner = Aligner.from_recipe(
        chosen, index=index, model=model, backend=backend, tokenizer=tokenizer, context_length=context_length
    )
    with aligner:
        if question is None:
            _converse(aligner, settings)
        elif json:
            completion = aligner.chat(question, decoding=settings)
            answer = {"response": completion.text, "finish_reason": completion.finish_reason}
            counts = {"n_output_tokens": completion.n_output_tokens, "n_cached_tokens": completion.n_cached_tokens}
            prompt = prompts.prompt_record("0", completion.prompt, aligner.packer.context_length)
            console.print_json(answer | counts | {"prompt": prompt})
        else:
            _answer(aligner, [_user(question)], settings)


def _converse(aligner: Aligner, settings: Decoding) -> None:
    from ragalign.errors import RagalignError
    from ragalign.types import Turn

    turns: list[Turn] = []
    while True:
        try:
            text = input("\n> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if not text:
            return
        if text == "/new":
            turns = []
            continue
        asked = [*turns, _user(text)]
        try:
            turns = [*asked, Turn("assistant", _answer(aligner, asked, settings))]
        except RagalignError as error:
            # The conversation goes on without the turn that failed.
            console.error(str(error))


def _answer(aligner: Aligner, turns: list[Turn], settings: Decoding) -> str:
    pieces = []
    for delta in aligner.stream(turns, decoding=settings):
        pieces.append(delta.text)
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(pieces)


def _user(text: str) -> Turn:
    from ragalign.types import Turn

    return Turn("user", text)
