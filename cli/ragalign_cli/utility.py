"""`ragalign utility`: measure what demonstrations do, and train an encoder on it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, options, query_options
from ragalign_cli.help import Command, group
from ragalign_cli.paths import out_folder

if TYPE_CHECKING:
    from ragalign.generation.distributions import SupportsDistributions
    from ragalign.indexes import Index as LoadedIndex
    from ragalign.utility import AnsweredQuestion

app = group("Measure how much demonstrations help, and train an encoder on it.")

OUT_HELP = "A .jsonl file or a folder for the gains; an interrupted run is resumed from it."


@app.command("score", cls=Command)
def score(
    index: Annotated[Path, typer.Argument(metavar="DIR", help="The index folder.", show_default=False)],
    model: options.Model,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE|DIR", help=OUT_HELP, show_default=False, rich_help_panel=options.OUTPUT),
    ],
    queries: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME|FILE",
            help="Questions with a reference answer; by default the pool's own pairs.",
            show_default=False,
            rich_help_panel=options.QUESTIONS,
        ),
    ] = None,
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    candidates: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            help="Candidates per question: half of them very similar, a quarter less so, the others random.",
            rich_help_panel=options.METHOD,
        ),
    ] = 20,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The recipe whose template and limit per demonstration apply.",
            rich_help_panel=options.METHOD,
        ),
    ] = "ica",
    max_reference_tokens: Annotated[
        Optional[int],
        typer.Option(
            metavar="N",
            min=1,
            help="Score only the first tokens of each reference.",
            show_default=False,
            rich_help_panel=options.METHOD,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all draws.", rich_help_panel=options.METHOD)] = 0,
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure how much likelier each candidate makes a good answer.

    For each question and candidate: the log-likelihood of the reference
    with the candidate shown alone, minus that without a demonstration.
    A question's own pair is never its candidate. If it is interrupted, run
    the same command again to continue.

    \b
    Examples:
      ragalign utility score indexes/mine --model ./base --out gains
      ragalign utility score indexes/mine --model ./base \\
          --queries dev.jsonl --candidates 20 --out gains.jsonl
    """
    from ragalign.bench.session import Engine
    from ragalign.indexes import Index
    from ragalign.measures.likelihood import supporting
    from ragalign.recipes import Recipe
    from ragalign.utility import GainRun, ScoreOptions

    console.be_quiet(quiet)
    chosen = Recipe.load(recipe)
    limits = ScoreOptions(candidates, max_reference_tokens, seed)
    options.check_gives_probabilities(backend)
    options.check_cluster(ray, workers, backend)
    settings = options.engine(dtype, tensor_parallel, gpu_memory)
    engine = Engine(model, backend, tokenizer, context_length, settings, ray=ray, workers=workers)
    engine.check()
    opened = Index.open(index)
    run = GainRun(
        opened,
        _questions(opened, queries, first, seed, field, metadata),
        out,
        recipe=chosen,
        tokenizer=engine.load_tokenizer(),
        settings={"model": model, **engine.settings},
        options=limits,
        context_length=context_length,
    )
    n_missing = run.n_missing
    console.note(f"{run.n_pairs:,} pairs of question and candidate, {n_missing:,} to measure")
    started = []

    def start() -> SupportsDistributions:
        console.note(f"starting the engine for {model} ...")
        started.append(engine.start())
        return supporting(started[0])

    try:
        run.run(start)
    except KeyboardInterrupt:
        console.note(f"interrupted; the gains are kept in {out}: run the same command again to continue")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    finally:
        for generator in started:
            generator.close()
    summary = run.summary()
    if json:
        console.print_json(summary)
    else:
        rows = [
            [name, f"{part['n']:,}", f"{part['mean']:+.4f}", f"{part['share_positive']:.0%}"]
            for name, part in summary["gain_per_token"].items()
        ]
        console.print_table(
            [("candidates", "left"), ("pairs", "right"), ("gain, nats/token", "right"), ("helpful", "right")], rows
        )
    if summary["n_unmeasured"]:
        console.warning(f"{summary['n_unmeasured']:,} pairs could not be measured, for example: {summary['reason']}")
    console.note(f"-> {run.files.path}")


@app.command("train", cls=Command)
def train(
    gains: Annotated[
        Path,
        typer.Argument(metavar="GAINS", help="The output of `ragalign utility score`.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for the trained encoder.",
            show_default=False,
            callback=out_folder,
            rich_help_panel=options.OUTPUT,
        ),
    ],
    encoder: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="The encoder to start from; by default MiniLM.", show_default=False),
    ] = None,
    text: Annotated[
        Optional[str],
        typer.Option(
            metavar="FORM",
            help="What it reads of demonstrations: instruction or both; by default what the scored index reads.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Maximum passes over the training questions.")] = 5,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of all weights.")] = 5e-5,
    held_out: Annotated[float, typer.Option(help="Share of the questions that decide when to stop.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Seed of all draws.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune an encoder on measured gains.

    The result is an encoder folder for `ragalign index --encoder` and for
    the retriever `utility`. Its README.md says what it was trained on.

    \b
    Examples:
      ragalign utility train gains --out encoders/useful
      ragalign index --pool answers.jsonl --encoder encoders/useful \\
          --out indexes/useful
    """
    from ragalign.encoders import DEFAULT_ENCODER
    from ragalign.utility import GainFiles, TrainOptions, train_encoder

    console.be_quiet(quiet)
    limits = TrainOptions(
        epochs=epochs,
        learning_rate=learning_rate,
        held_out=held_out,
        text=text,  # type: ignore[arg-type]
        seed=seed,
    )
    read = GainFiles(gains).read()
    console.note(f"training on {len(read.gains):,} gains ...")
    try:
        found = train_encoder(read, out, encoder=encoder or DEFAULT_ENCODER, options=limits)
    except KeyboardInterrupt:
        console.note("interrupted; nothing was written")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    if json:
        console.print_json(found.to_dict())
    else:
        rows = [
            ["before", f"{found.before.chosen:+.4f}", f"{found.before.correlation:+.3f}"],
            ["after", f"{found.after.chosen:+.4f}", f"{found.after.correlation:+.3f}"],
            ["a random candidate", f"{found.before.mean:+.4f}", ""],
            ["the best candidate", f"{found.before.best:+.4f}", ""],
        ]
        console.heading(f"{found.before.n:,} held-out questions")
        console.print_table(
            [("", "left"), ("gain of the first, nats/token", "right"), ("rank correlation", "right")], rows
        )
    if not found.epochs:
        console.warning("no epoch fitted the held-out questions better: the encoder's weights are unchanged")
    console.note(f"-> {out}")


def _questions(
    index: LoadedIndex,
    queries: str | None,
    first: int | None,
    seed: int,
    field: list[str] | None,
    metadata: list[str] | None,
) -> list[AnsweredQuestion]:
    """The questions of a file with their references; a file of demonstrations has both, too."""
    from ragalign.errors import DataError
    from ragalign.pool import Pool
    from ragalign.utility import pool_questions, query_questions

    if queries is None:
        return pool_questions(index.pool, first, seed)
    cases = query_options.read_cases(queries, first, field, metadata)
    found, n_without = query_questions(case.query for case in cases.cases)
    if not found and Path(queries).is_file():
        with suppress(DataError):  # no demonstrations either
            found, n_without = pool_questions(Pool.load(queries, metadata=metadata or ()))[:first], 0
    if n_without and found:
        console.note(f"no reference answer, left out: {n_without:,} of {n_without + len(found):,} questions")
    return found
