"""`ragalign pool refine`: rewrite weak demonstrations, and keep what the base model finds better."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from ragalign_cli import console, options
from ragalign_cli.pool_options import PoolOut, load
from ragalign_cli.pool_scores import PoolFile

if TYPE_CHECKING:
    from ragalign.utility.refining import RewriteVerdict


def refine(
    pool: PoolFile,
    backend: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible server of the model that rewrites, such as http://localhost:8000/v1.",
            show_default=False,
            rich_help_panel="Rewriting",
        ),
    ],
    writer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The name of the model that rewrites, on that server.",
            show_default=False,
            rich_help_panel="Rewriting",
        ),
    ],
    model: options.Model,
    out: PoolOut,
    by: Annotated[
        Literal["ifd", "perplexity"],
        typer.Option(help="Base model's score that selects the weak demonstrations, and that a rewrite must improve."),
    ] = "ifd",
    weakest: Annotated[int, typer.Option(metavar="N", min=1, help="Demonstrations to rewrite.")] = 100,
    min_similarity: Annotated[
        float, typer.Option(metavar="S", help="The lowest cosine of original and rewrite.")
    ] = 0.7,
    encoder: Annotated[
        Optional[str],
        typer.Option(
            metavar="NAME", help="Encoder that compares original and rewrite; by default MiniLM.", show_default=False
        ),
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME", help="The recipe whose template applies.")] = "ica",
    max_requests: Annotated[
        Optional[int],
        typer.Option(
            metavar="N",
            min=0,
            help="Maximum requests, retries included; by default twice the demonstrations.",
            show_default=False,
            rich_help_panel="Rewriting",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Maximum tokens per rewrite.", rich_help_panel="Rewriting")
    ] = 1024,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, help="Maximum requests in flight.", rich_help_panel="Rewriting")
    ] = 8,
    key_variable: Annotated[
        str,
        typer.Option(metavar="NAME", help="Environment variable with the API key.", rich_help_panel="Rewriting"),
    ] = "OPENAI_API_KEY",
    engine_backend: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option(help="What runs the base model.", rich_help_panel=options.MODEL),
    ] = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    json: Annotated[bool, typer.Option("--json", help="Print all verdicts as JSON.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Rewrite weak demonstrations where that helps.

    The pool must have scores by the rule given with --by. An
    instruction-tuned model rewrites the weakest responses; a rewrite replaces
    the original only if the base model's own score improves and its meaning
    stays close to the original's. The original, the rewriter and both scores
    are kept in metadata.refined. If it is interrupted, run the same command
    again: nothing is paid for twice.

    \b
    Examples:
      ragalign pool score answers.jsonl --by ifd --model ./base \\
          --out scored.jsonl
      ragalign pool refine scored.jsonl --backend http://localhost:8000/v1 \\
          --writer my-chat-model --model ./base --out refined.jsonl
    """
    from dataclasses import asdict

    from ragalign.bench.session import Engine
    from ragalign.encoders import DEFAULT_ENCODER, Encoder
    from ragalign.errors import ConfigError
    from ragalign.judging.judges import Judge
    from ragalign.measures.likelihood import supporting
    from ragalign.recipes import Recipe
    from ragalign.utility import refining
    from ragalign.utility.pool_scores import ResponseScorer
    from ragalign.utility.rewriting import RewriteOptions, rewrite

    console.be_quiet(quiet)
    if Path(pool).exists() and out.exists() and Path(pool).samefile(out):
        raise ConfigError(f"--out {out} is the pool itself; name another file, so that the originals are kept")
    if not -1 <= min_similarity <= 1:
        raise ConfigError(f"--min-similarity must be between -1 and 1, not {min_similarity:g}")
    asked = Judge(writer, backend, key_variable)
    chosen = Recipe.load(recipe)
    engine = Engine(
        model, engine_backend, tokenizer, context_length, options.engine(dtype, tensor_parallel, gpu_memory)
    )
    engine.check()
    loaded = load([pool], "auto", None, "strict", False)
    words = engine.load_tokenizer()
    comparing = Encoder.load(encoder or DEFAULT_ENCODER)
    weak = refining.weakest(loaded, by, weakest)
    most = 2 * len(weak) if max_requests is None else max_requests
    limits = RewriteOptions(max_requests=most, max_tokens=max_new_tokens, concurrency=concurrency)
    replies, scores = (out.with_name(f"{out.name}.{part}.partial.jsonl") for part in ("rewrites", "scores"))
    try:
        rewrites = rewrite(weak, asked, replies, limits)
        console.note(f"{len(rewrites.texts):,} of {len(weak):,} rewritten, {rewrites.n_requests:,} requests sent")
        verdicts = []
        if any(rewrites.texts.values()):
            console.note(f"starting the engine for {model} ...")
            with engine.start() as generator:
                scorer = ResponseScorer(chosen, words, supporting(generator))
                settings = {"rule": by, "model": model, **engine.settings, "template": chosen.content()["template"]}
                verdicts = refining.judge_rewrites(
                    weak, rewrites.texts, by, scorer, comparing, scores, settings,
                    min_similarity=min_similarity,
                )  # fmt: skip
    except KeyboardInterrupt:
        console.note(f"interrupted; the rewrites are kept in {replies}: run the same command again to continue")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None
    refined = refining.with_rewrites(loaded, rewrites.texts, verdicts, by, asked.model)
    refined.save(out)
    if json:
        console.print_json({"verdicts": [asdict(verdict) for verdict in verdicts], "problems": dict(rewrites.problems)})
    else:
        _show(verdicts)
    if rewrites.problems:
        reason = next(iter(rewrites.problems.values()))
        console.warning(
            f"{len(rewrites.problems):,} were not rewritten, for example: {reason}; run the same command "
            "again to retry them"
        )
    else:
        for path in (replies, scores):
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.run.json").unlink(missing_ok=True)
    console.note(f"wrote {len(refined):,} demonstrations to {out}")


def _show(verdicts: list[RewriteVerdict]) -> None:
    counts = Counter(verdict.reason or "kept" for verdict in verdicts)
    console.print_table([("rewrites", "left"), ("", "right")], [[reason, f"{n:,}"] for reason, n in counts.items()])
