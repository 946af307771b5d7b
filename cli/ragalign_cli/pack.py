"""`ragalign pack`: show the prompts that a model would get."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ragalign_cli import console, options, prompts, query_options

_BATCH = 1024


def pack(
    index: options.Index = None,
    text: Annotated[
        Optional[str],
        typer.Argument(metavar="[QUESTION]", help="A question, instead of --queries.", show_default=False),
    ] = None,
    question: options.Question = None,
    queries: options.OptionalQueries = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    system: options.System = None,
    recipe: options.RecipeName = "ica",
    tokenizer: Annotated[
        Optional[str],
        typer.Option(
            help="Folder, GGUF file or hub id of the model's tokenizer.",
            show_default=False,
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    context_length: options.ContextLength = None,
    show: Annotated[bool, typer.Option("--show", help="Print the whole prompt with the origin of each part.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
) -> None:
    """Show packed prompts: demonstrations used, demonstrations dropped and why, and token counts.

    Only recipes that retrieve need DIR.

    \b
    Examples:
      ragalign pack indexes/lima "How do brain cells move?" \\
          --tokenizer meta-llama/Llama-2-13b-hf --show
      ragalign pack indexes/lima --recipe ica --tokenizer ./llama-2 \\
          --queries queries.jsonl --json
      ragalign pack --recipe urial --question "How do brain cells move?" \\
          --tokenizer ./llama-2
    """
    from ragalign.aligner import Aligner
    from ragalign.errors import BudgetError, ConfigError
    from ragalign.recipes import Recipe
    from ragalign.types import Query, Turn

    if tokenizer is None:
        raise ConfigError("give --tokenizer, the folder or hub id of the model's tokenizer")
    chosen = Recipe.load(recipe)
    options.check_index(index, chosen, "pack")
    single = options.one_question(text, question)
    if (single is None) == (queries is None):
        raise ConfigError("give either a question or --queries FILE")
    if single is not None:
        asked = [Query("0", (Turn("user", single),))]
    else:
        asked = query_options.read(queries or "-", field, metadata)
    asked = options.with_system(options.first_of(asked, first), system)
    aligner = Aligner.from_recipe(chosen, index=index, tokenizer=tokenizer, context_length=context_length)
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
