"""`ragalign pack`: the prompt that a model would see, and how it came about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ragalign_cli import console, prompts, query_options

_BATCH = 1024


def pack(
    index: Annotated[Path, typer.Argument(metavar="DIR", help="The index.")],
    question: Annotated[Optional[str], typer.Argument(help="One question, instead of --queries.")] = None,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a TOML file.")] = "ica",
    tokenizer: Annotated[
        Optional[str],
        typer.Option(help="Folder, GGUF file or hub id of the model's tokenizer.", show_default=False),
    ] = None,
    queries: Annotated[
        Optional[Path],
        typer.Option(help=query_options.QUERIES_HELP, show_default=False),
    ] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    context_length: Annotated[
        Optional[int],
        typer.Option(min=1, help="Tokens that prompt and completion share.", show_default=False),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the whole prompt, each part beside its origin.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per query.")] = False,
) -> None:
    """Show packed prompts: what was used, what was dropped and why, and token counts.

    \b
    Examples:
      ragalign pack indexes/lima "How do brain cells move?" \\
          --tokenizer meta-llama/Llama-2-13b-hf --show
      ragalign pack indexes/lima --recipe ica --tokenizer ./llama-2 \\
          --queries queries.jsonl --json
    """
    from ragalign.aligner import Aligner
    from ragalign.errors import BudgetError, ConfigError
    from ragalign.types import Query, Turn

    if tokenizer is None:
        raise ConfigError("give --tokenizer: the folder or hub id of the model's tokenizer")
    if (question is None) == (queries is None):
        raise ConfigError("give either a question or --queries FILE")
    if question is not None:
        asked = [Query("0", (Turn("user", question),))]
    else:
        asked = query_options.read(queries or Path(), field, metadata)
    aligner = Aligner.from_recipe(recipe, index=index, tokenizer=tokenizer, context_length=context_length)
    failed = False
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        for query, prompt in zip(batch, aligner.pack_many(batch), strict=True):
            if isinstance(prompt, BudgetError):
                failed = True
                console.error(f"query {query.id}: {prompt}")
                if json:
                    console.print_json({"id": query.id, "error": str(prompt)})
            elif json:
                console.print_json(prompts.prompt_record(query.id, prompt, context_length))
            else:
                if queries is not None:
                    console.heading(f"query {query.id}")
                if show:
                    prompts.show_prompt(prompt)
                else:
                    prompts.show_demonstrations(prompt)
                prompts.show_budget(prompt, context_length)
                prompts.show_dropped(prompt)
    if failed:
        raise typer.Exit(console.EXIT_FAILURE)
