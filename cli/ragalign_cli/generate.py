"""`ragalign generate`: a file of queries in, a file of completions out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from ragalign_cli import console, decoding, query_options


def generate(
    index: Annotated[Path, typer.Argument(metavar="DIR", help="The index.")],
    model: decoding.Model,
    queries: Annotated[Path, typer.Option(help=query_options.QUERIES_HELP)],
    out: Annotated[Path, typer.Option(help="JSON Lines; appended to, and resumed by id.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a TOML file.")] = "ica",
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    backend: decoding.Backend = "auto",
    tokenizer: decoding.Tokenizer = None,
    context_length: decoding.ContextLength = None,
    max_new_tokens: decoding.MaxNewTokens = None,
    temperature: decoding.Temperature = None,
    top_p: decoding.TopP = None,
    seed: decoding.Seed = None,
    n: decoding.Samples = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Answer a file of queries. Interrupted, it goes on where it stopped.

    \b
    Examples:
      ragalign generate indexes/lima --recipe ica \\
          --model meta-llama/Llama-2-13b-hf --queries q.jsonl --out a.jsonl
      ragalign generate indexes/lima --model llama-2-13b --tokenizer ./llama-2 \\
          --backend http://localhost:8000/v1 --queries q.jsonl --out a.jsonl
    """
    from ragalign.aligner import Aligner
    from ragalign.completions import CompletionFile, FileReport, generation_settings
    from ragalign.indexes import Index
    from ragalign.recipes import Recipe

    asked = query_options.read(queries, field, metadata)
    chosen = Recipe.load(recipe)
    settings = decoding.override(
        chosen.decoding, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, n=n
    )
    opened = Index.open(index) if chosen.retriever.name != "none" else None
    others = {"backend": backend, "tokenizer": tokenizer, "context_length": context_length}
    # The file is claimed and checked before the engine starts.
    with CompletionFile(out, asked, generation_settings(chosen, settings, model, opened, **others)) as file:
        start = time.perf_counter()
        if file.missing:
            with Aligner.from_recipe(
                chosen, index=opened, model=model, backend=backend, tokenizer=tokenizer, context_length=context_length
            ) as aligner:
                start = time.perf_counter()
                report = file.generate(aligner, decoding=settings)
        else:
            report = FileReport(0, file.n_present, ())
        seconds = time.perf_counter() - start
    for failure in report.failures:
        console.error(f"query {failure.query.id}: {failure.error}")
    if json:
        counts = {"n_written": report.n_written, "n_present": report.n_present, "n_failed": len(report.failures)}
        console.print_json(counts | {"seconds": round(seconds, 3), "out": str(out)})
    else:
        present = f", {report.n_present:,} were there already" if report.n_present else ""
        console.note(f"{report.n_written:,} completions in {seconds:.1f} s -> {out}{present}")
    if report.failures:
        raise typer.Exit(console.EXIT_FAILURE)
