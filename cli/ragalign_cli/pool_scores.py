"""`ragalign pool score` and `ragalign pool select`: which demonstrations of a pool are worth keeping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from ragalign_cli import console, options
from ragalign_cli.pool_options import PoolOut, load

if TYPE_CHECKING:
    from ragalign.pool import Pool

Rule = Annotated[
    Literal["length", "ifd", "utility", "perplexity"],
    typer.Option(
        help="length: tokens of the response. perplexity: of the response given the instruction. ifd: that, "
        "divided by the perplexity of the response alone. utility: mean gain over questions.",
        show_default=False,
    ),
]
PoolFile = Annotated[
    str, typer.Argument(metavar="POOL", help="A file of demonstrations, or a dataset.", show_default=False)
]


def score(
    pool: PoolFile,
    by: Rule,
    out: PoolOut,
    model: Annotated[
        Optional[str],
        typer.Option(
            help="As for `ragalign generate`; not needed with --gains, nor for length if --tokenizer is given.",
            show_default=False,
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    gains: Annotated[
        Optional[Path],
        typer.Option(
            metavar="GAINS",
            help="For utility: the output of `ragalign utility score`, instead of measuring.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        int, typer.Option("--sample", metavar="N", min=1, help="For utility: questions to draw from the pool.")
    ] = 20,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="The recipe whose template applies.")] = "ica",
    seed: Annotated[int, typer.Option(help="Seed of the drawn questions.")] = 0,
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    json: Annotated[bool, typer.Option("--json", help="Print the distribution as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Score demonstrations by a rule, as metadata.

    The pool is written with the field metadata.scores.RULE; scores by other
    rules are kept. If it is interrupted, run the same command again to
    continue.

    \b
    Examples:
      ragalign pool score answers.jsonl --by ifd --model ./base \\
          --out scored.jsonl
      ragalign pool select scored.jsonl --by ifd --top 1000 --out best.jsonl
    """
    from ragalign.bench.session import Engine
    from ragalign.errors import ConfigError
    from ragalign.measures.likelihood import supporting
    from ragalign.models import locate_model
    from ragalign.recipes import Recipe
    from ragalign.tokenization import Tokenizer
    from ragalign.utility import GainFiles, PromptForm, pool_questions
    from ragalign.utility import pool_scores as scores

    console.be_quiet(quiet)
    if gains is not None and by != "utility":
        raise ConfigError("--gains goes with --by utility")
    if model is None and not (gains or (by == "length" and tokenizer)):
        raise ConfigError(f"--by {by} needs --model" + (" or --tokenizer, to count tokens" if by == "length" else ""))
    chosen = Recipe.load(recipe)
    loaded = load([pool], "auto", None, "strict", False)
    work = out.with_name(f"{out.name}.{by}.partial.jsonl")
    if gains is not None:
        measured = GainFiles(gains).read().mean_by_candidate()
        found = {name: measured.get(name) for name in loaded.ids}
    elif by == "length":
        found = scores.lengths(loaded, Tokenizer.load(tokenizer or locate_model(str(model))))
    else:
        options.check_gives_probabilities(backend)
        engine = Engine(
            str(model), backend, tokenizer, context_length, options.engine(dtype, tensor_parallel, gpu_memory)
        )
        engine.check()
        words = engine.load_tokenizer()
        content = chosen.content()
        settings = {
            "rule": by, "model": model, **engine.settings, "pool": loaded.fingerprint, "template": content["template"]
        }  # fmt: skip
        if by == "utility":
            settings |= {
                "questions": questions, "seed": seed, "constants": content["constants"],
                "max_demonstration_tokens": chosen.packing.max_demonstration_tokens,
            }  # fmt: skip
        scores.check_output(work, settings)
        console.note(f"starting the engine for {model} ...")
        try:
            with engine.start() as generator:
                model_ = supporting(generator)
                if by == "utility":
                    form = PromptForm(chosen, loaded, words, context_length=generator.context_length)
                    asked = pool_questions(loaded, questions, seed)
                    found = scores.measure_utilities(loaded, asked, form, model_, work, settings)
                else:
                    scorer = scores.ResponseScorer(chosen, words, model_)
                    found = scores.measure_scores(loaded, by, scorer, work, settings)
        except KeyboardInterrupt:
            console.note(f"interrupted; the scores are kept in {work}: run the same command again to continue")
            raise typer.Exit(console.EXIT_INTERRUPTED) from None
    scored = scores.with_scores(loaded, by, found)
    scored.save(out)
    for path in (work, work.with_name(f"{work.name}.run.json")):
        path.unlink(missing_ok=True)
    if json:
        console.print_json(score_records(scored)[by])
    else:
        print_scores(scored)
    if n_without := sum(found.get(name) is None for name in loaded.ids):
        console.note(f"{n_without:,} of {len(loaded):,} demonstrations could not be scored by {by}")
    console.note(f"wrote {len(scored):,} demonstrations to {out}")


def select(
    pool: PoolFile,
    by: Rule,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Demonstrations to keep.", show_default=False)],
    out: PoolOut,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="Skip demonstrations that are similar to a better one.")
    ] = False,
    max_similarity: Annotated[
        float, typer.Option(metavar="S", help="With --diverse: the highest cosine between instructions.")
    ] = 0.9,
    encoder: Annotated[
        Optional[str],
        typer.Option(metavar="NAME", help="With --diverse: the encoder; by default MiniLM.", show_default=False),
    ] = None,
) -> None:
    """Keep the best demonstrations of a scored pool.

    Higher is better, except by perplexity. By ifd, demonstrations of 1 and
    above are dropped: their instruction does not help to predict the response.

    \b
    Examples:
      ragalign pool select scored.jsonl --by length --top 1000 --out long.jsonl
      ragalign pool select scored.jsonl --by utility --top 500 --diverse \\
          --out best.jsonl
    """
    from ragalign.encoders import DEFAULT_ENCODER, Encoder
    from ragalign.utility import pool_scores as scores

    loaded = load([pool], "auto", None, "strict", False)
    scores.require(loaded, by)
    vectors = Encoder.load(encoder or DEFAULT_ENCODER).encode(loaded.instructions) if diverse else None
    kept = scores.select(loaded, by, top, vectors=vectors, ceiling=max_similarity)
    kept.save(out)
    if len(kept) < top:
        console.note(f"only {len(kept):,} of {len(loaded):,} demonstrations qualify")
    console.note(f"wrote {len(kept):,} of {len(loaded):,} demonstrations to {out}")


_HEADINGS = ("min", "25 %", "median", "75 %", "95 %", "max", "mean")
_COLUMNS = ("min", "p25", "median", "p75", "p95", "max", "mean")


def score_records(pool: Pool) -> Mapping[str, Mapping[str, float]]:
    """The distribution of the scores in a pool's metadata, by rule."""
    import numpy as np

    from ragalign.utility.pool_scores import scores_of

    found = {}
    for rule, scores in scores_of(pool).items():
        known = [score for score in scores if score is not None]
        if known:
            values = [*np.percentile(known, [0, 25, 50, 75, 95, 100]).tolist(), float(np.mean(known))]
            found[rule] = {"n": len(known), **dict(zip(_COLUMNS, values, strict=True))}
    return found


def print_scores(pool: Pool) -> None:
    """Print the distribution of the scores in a pool's metadata; nothing if it has none."""
    records = score_records(pool)
    if records:
        console.heading("scores")
        console.print_table(
            [
                ("", "left"),
                *((name, "right") for name in ("n", "min", "25 %", "median", "75 %", "95 %", "max", "mean")),
            ],
            [[rule, f"{row['n']:,.0f}", *(f"{row[name]:,.4g}" for name in _COLUMNS)] for rule, row in records.items()],
        )
