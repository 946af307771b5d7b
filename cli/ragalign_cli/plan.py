"""`ragalign plan`: show the tokens that shared prefixes would save, and the relevance they would cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from ragalign_cli import console, options, query_options
from ragalign_cli.paths import out_file

if TYPE_CHECKING:
    from ragalign.planning import FrontierPoint

_COLUMNS = [
    ("setting", "left"),
    ("kept", "right"),
    ("score", "right"),
    ("demos", "right"),
    ("prompt", "right"),
    ("prefilled", "right"),
    ("loaded", "right"),
    ("saved", "right"),
    ("≥ prefix", "right"),
    ("≥ reuse", "right"),
]


def plan(
    index: Annotated[Path, typer.Argument(metavar="DIR", help="The index folder.", show_default=False)],
    queries: Annotated[Path, typer.Option(help=query_options.QUERIES_HELP, show_default=False)],
    tokenizer: Annotated[
        str, typer.Option(help="Folder, GGUF file or hub id of the model's tokenizer.", show_default=False)
    ],
    recipe: Annotated[str, typer.Option(help="A recipe's name or TOML file.")] = "ica",
    field: query_options.QuestionFields = None,
    metadata: query_options.Metadata = None,
    first: options.First = None,
    floor: Annotated[
        Optional[list[float]],
        typer.Option(help="Minimum share of relevance to keep, 0 to 1. Repeatable.", show_default=False),
    ] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to consider per query.")] = 300,
    personal: Annotated[
        Optional[int],
        typer.Option(
            min=0,
            help="Number of most similar demonstrations to keep last; by default the recipe's.",
            show_default=False,
        ),
    ] = None,
    block_size: Annotated[
        Optional[int],
        typer.Option(
            min=1, help="Tokens per block of the engine's cache; by default the recipe's.", show_default=False
        ),
    ] = None,
    cache_tokens: Annotated[
        Optional[int],
        typer.Option(min=1, help="Capacity of the cache in tokens; by default unlimited.", show_default=False),
    ] = None,
    context_length: Annotated[
        Optional[int],
        typer.Option(min=1, help="Maximum tokens of prompt and completion together.", show_default=False),
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option(metavar="SVG", help="Write a plot of the frontier to this file.", callback=out_file),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per setting.")] = False,
) -> None:
    """Show what each planner strategy saves on a question file: prefilled tokens against relevance kept.

    The columns are means per request: relevance kept, score and number of demonstrations, prompt tokens and prefilled
    tokens. "≥ prefix" is a lower bound on prefilled tokens for any order of the same demonstrations; "≥ reuse" is the
    bound for an engine that reuses demonstrations at any position.

    The last rows show reuse (`ragalign kv`): demonstrations are loaded instead of computed, all but the most similar
    ones. If the tokenizer's folder also holds the model's configuration, "MB" is the size of what is loaded.

    \b
    Examples:
      ragalign plan indexes/lima --queries queries.jsonl \\
          --tokenizer meta-llama/Llama-2-13b-hf
      ragalign plan indexes/lima --queries queries.jsonl --tokenizer ./llama-2 \\
          --floor 0.98 --floor 0.9 --out plan.svg
    """
    from dataclasses import asdict, replace

    from ragalign._progress import progress
    from ragalign.aligner import Aligner
    from ragalign.errors import ConfigError
    from ragalign.planning import default_settings, frontier
    from ragalign.planning.frontier import FLOORS, measure
    from ragalign.planning.plot import frontier_svg
    from ragalign.recipes import Recipe

    if out is not None and out.suffix.lower() != ".svg":
        raise ConfigError(f"--out {out}: the plot is an SVG; give a file name that ends in .svg")
    chosen = Recipe.load(recipe)
    base = replace(
        chosen.planner,
        candidates=candidates,
        personal=chosen.planner.personal if personal is None else personal,
        block_size=block_size or chosen.planner.block_size,
    )
    settings = default_settings(base, tuple(floor or FLOORS))
    # Retrieve as much as the widest strategy needs.
    chosen = replace(chosen, planner=settings[-1])
    asked = options.first_of(query_options.read(queries, field, metadata), first)
    aligner = Aligner.from_recipe(chosen, index=index, tokenizer=tokenizer, context_length=context_length)
    capacity = None if cache_tokens is None else max(1, cache_tokens // base.block_size)
    points: list[FrontierPoint] = []
    with progress("planning", len(settings), "settings") as advance:
        for point in frontier(
            aligner.packer,
            [query.turns for query in asked],
            aligner.retrieve(asked),
            settings,
            n_plain=aligner.candidates,
            more=aligner.more(asked),
            capacity=capacity,
        ):
            points.append(point)
            advance(1)
    reused = {
        real: measure(aligner.assuming_reuse(real).plan(asked), replace(base, strategy="none"), capacity=capacity)
        for real in sorted({0, 1, 2, chosen.reuse.real})
    }
    size = _bytes_per_token(tokenizer)
    if json:
        for point in points:
            console.print_json({name: _rounded(value) for name, value in asdict(point).items()})
        for real, point in reused.items():
            values = asdict(point) | {"strategy": "reuse", "real": real}
            values |= {} if size is None else {"loaded_bytes": round(size * point.n_loaded)}
            console.print_json({name: _rounded(value) for name, value in values.items()})
    else:
        rows = [_row(point, points[0]) for point in points]
        for real, point in reused.items():
            rows.append([f"reuse, {real} computed", *_row(point, points[0])[1:]])
        columns = list(_COLUMNS)
        if size is not None:
            columns.append(("MB", "right"))
            loaded = [0.0] * len(points) + [point.n_loaded for point in reused.values()]
            rows = [[*row, f"{size * n / 1e6:,.1f}" if n else ""] for row, n in zip(rows, loaded, strict=True)]
        console.print_table(columns, rows)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(frontier_svg(points, f"{len(asked):,} queries, {base.personal} pinned"), encoding="utf-8")
        console.note(f"frontier -> {out}")


def _row(point: FrontierPoint, plain: FrontierPoint) -> list[str]:
    setting: str = point.strategy
    if setting == "reorder":
        setting += f", {point.personal} last"
    elif setting != "none":
        setting += f" {point.min_relevance:g}"
        setting += f" (as {point.planned_at:g})" if point.planned_at != point.min_relevance else ""
    return [
        setting,
        f"{point.relevance:.3f}",
        f"{point.similarity:.3f}",
        f"{point.n_demonstrations:.1f}",
        f"{point.n_prompt_tokens:,.0f}",
        f"{point.n_prefilled:,.0f}",
        f"{point.n_loaded:,.0f}" if point.n_loaded else "",
        "" if point is plain else f"{1 - point.n_prefilled / plain.n_prefilled:.0%}",
        f"{point.prefix_bound:,.0f}",
        f"{point.reuse_bound:,.0f}",
    ]


def _bytes_per_token(model: str) -> float | None:
    """The size of a token's keys and values at 16 bits; None if the folder holds no model's configuration."""
    from transformers import AutoConfig

    from ragalign.models import locate_tokenizer

    try:
        config = AutoConfig.from_pretrained(locate_tokenizer(model)).get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        features = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return float(2 * config.num_hidden_layers * heads * features * 2)
    except (OSError, ValueError, AttributeError):
        return None


def _rounded(value: object) -> object:
    return round(value, 4) if isinstance(value, float) else value
