"""`ragalign generate`: answer a file of questions."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated

import typer

from ragalign_cli import console, options, query_options


def generate(
    model: options.Model,
    queries: options.Queries,
    out: options.OutFile,
    index: options.Index = None,
    recipe: options.RecipeName = "ica",
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    system: options.System = None,
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    n: options.Samples = None,
    stop: options.Stop = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer a file of questions.

    If it is interrupted, run the same command again to continue. Only recipes that retrieve need DIR.

    \b
    Examples:
      ragalign generate indexes/lima --recipe ica \\
          --model meta-llama/Llama-2-13b-hf --queries q.jsonl --out a.jsonl
      ragalign generate --recipe urial --model ./llama-2-13b \\
          --queries - --first 100 --out a.jsonl < q.jsonl
      ragalign generate indexes/lima --model llama-2-13b --tokenizer ./llama-2 \\
          --backend http://localhost:8000/v1 --queries q.jsonl --out a.jsonl
      ragalign generate indexes/lima --model ./llama-2-13b \\
          --ray auto --workers 8 --queries q.jsonl --out a.jsonl
    """
    from ragalign.aligner import Aligner
    from ragalign.completions import CompletionFile, CompletionReport, generation_settings
    from ragalign.indexes import open_index
    from ragalign.recipes import Recipe

    console.be_quiet(quiet)
    options.check_cluster(ray, workers, backend)
    chosen = Recipe.load(recipe)
    settings = options.decoding(
        chosen.decoding, max_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, n=n, stop=stop
    )
    options.check_index(index, chosen, "generate")
    asked = options.with_system(options.first_of(query_options.read(queries, field, metadata), first), system)
    opened = open_index(index) if index is not None and chosen.retriever.name != "none" else None
    engine_options = options.engine(dtype, tensor_parallel, gpu_memory)
    others = {"backend": backend, "tokenizer": tokenizer, "context_length": context_length}
    if dtype is not None:
        others["dtype"] = dtype
    # The file is claimed and checked before the engine starts.
    with CompletionFile(out, asked, generation_settings(chosen, settings, model, opened, **others)) as file:
        start = time.perf_counter()
        if file.missing:
            options.check_model(model, backend, context_length, engine_options)
            with Aligner.from_recipe(
                replace(chosen, decoding=settings),
                index=opened,
                model=model,
                backend=backend,
                tokenizer=tokenizer,
                context_length=context_length,
                ray=ray,
                workers=workers,
                **engine_options,
            ) as aligner:
                start = time.perf_counter()
                report = file.generate(aligner)
        else:
            report = CompletionReport(0, file.n_present, ())
        seconds = time.perf_counter() - start
    for failure in report.failures:
        console.error(f"query {failure.query.id}: {failure.error}")
    if json:
        counts = {"n_written": report.n_written, "n_present": report.n_present, "n_failed": len(report.failures)}
        console.print_json(counts | {"seconds": round(seconds, 3), "out": str(out)})
    elif report.n_present == len(asked):
        console.note(f"nothing to do: all {report.n_present:,} answers are in {out}")
    else:
        present = f", {report.n_present:,} existed" if report.n_present else ""
        console.note(f"{report.n_written:,} completions in {seconds:.1f} s -> {out}{present}")
    if report.failures:
        raise typer.Exit(console.EXIT_FAILURE)
