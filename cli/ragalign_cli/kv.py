"""`ragalign kv`: store demonstrations' keys and values, and check the effect of reusing them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragalign_cli import console, options
from ragalign_cli.help import group

if TYPE_CHECKING:
    from ragalign.recipes import Recipe
    from ragalign.reuse.store import Store

app = group()

# While a store is built, only its prefix is loaded, once per demonstration; this keeps it in memory, at any length.
_PREFIX_MEMORY = 2**33

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The index folder.", show_default=False)]
Place = Annotated[
    Path, typer.Argument(metavar="DIR", help="The index folder, or a store's folder.", show_default=False)
]
RecipeName = Annotated[str, typer.Option(help="A recipe's name or TOML file.")]
StoreFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of keys and values; by default DIR.kv/RECIPE-MODEL.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.command()
def build(
    index: Folder,
    model: options.Model,
    recipe: RecipeName = "reuse",
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    precision: Annotated[
        Literal["model", "int8", "fp8"],
        typer.Option(help="Precision of the stored values; int8 and fp8 take half the space."),
    ] = "model",
    store: StoreFolder = None,
    ray: options.Ray = None,
    workers: options.Workers = None,
    json: Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compute and store the keys and values of demonstrations.

    If it is interrupted, run the same command again to continue.

    After the index changes, only the demonstrations added or removed are updated.

    \b
    Examples:
      ragalign kv build indexes/lima --model meta-llama/Llama-3.1-8B
      ragalign kv build indexes/lima --recipe mine.toml --model ./llama \\
          --precision int8
      ragalign kv build indexes/lima --model ./llama --ray auto --workers 8
    """
    from ragalign.aligner import Aligner
    from ragalign.executors.factory import start_generator
    from ragalign.models import locate_model
    from ragalign.reuse.building import build as build_store
    from ragalign.reuse.keeping import connector_config
    from ragalign.reuse.layout import manifest_for
    from ragalign.reuse.opening import check_backend, check_model, check_same_model
    from ragalign.reuse.store import Store

    console.be_quiet(quiet)
    check_backend(backend)
    options.check_cluster(ray, workers)
    chosen = _plain(recipe)
    folder = _store_folder(store, index, chosen, model)
    engine = options.engine(dtype, tensor_parallel, gpu_memory)
    check_model(model, context_length, engine)
    packer = Aligner.from_recipe(chosen, index=index, tokenizer=locate_model(tokenizer or model)).packer
    made = Store.create(folder, manifest_for(packer, precision))
    check_same_model(made, model, dtype)
    with (
        made.writing(),
        start_generator(
            "vllm",
            model=model,
            context_length=context_length,
            ray=ray,
            workers=workers,
            tokenizer=tokenizer,
            kv_transfer_config=connector_config(folder, memory=_PREFIX_MEMORY),
            **engine,
        ) as generator,
    ):
        kept = Store(folder)  # the engine has recorded its model
        built = build_store(kept, packer, generator)
    counts = {"n_computed": built.n_computed, "n_present": built.n_present, "n_removed": built.n_removed}
    if json:
        console.print_json(counts | {"store": str(folder), "key": kept.key})
        return
    present = f", {built.n_present:,} existed" if built.n_present else ""
    removed = f", {built.n_removed:,} removed" if built.n_removed else ""
    console.note(f"{built.n_computed:,} demonstrations computed{present}{removed} -> {folder}")


@app.command()
def info(place: Place, json: Json = False) -> None:
    """Show the stores of an index: their model, prefix and size.

    \b
    Example:
      ragalign kv info indexes/lima --json
    """
    from ragalign.reuse.building import info as describe

    for store in _stores(place):
        found = describe(store)
        if json:
            console.print_json(found)
            continue
        about = found["about"].get("model", "no model yet")
        console.note(
            f"{store.folder}: {found['n_pieces']:,} pieces, {found['n_bytes'] / 1e6:,.1f} MB, "
            f"after a prefix of {found['n_prefix_tokens']:,} tokens, precision {found['precision']}, for {about}"
        )


@app.command()
def verify(place: Place, json: Json = False) -> None:
    """Verify the hash of every stored file.

    Damaged files are listed and set aside; `kv build` computes them again.

    \b
    Example:
      ragalign kv verify indexes/lima
    """
    from ragalign.reuse.building import verify as faults_of

    failed = False
    for store in _stores(place):
        faults = faults_of(store)
        failed = failed or bool(faults)
        for fault in faults:
            console.error(fault)
        n_pieces = sum(1 for _ in store.names())
        if json:
            console.print_json({"store": str(store.folder), "n_pieces": n_pieces, "faults": faults})
        elif not faults:
            console.note(f"{store.folder}: {n_pieces:,} pieces, all intact")
    if failed:
        raise typer.Exit(console.EXIT_FAILURE)


@app.command()
def check(
    index: Folder,
    model: options.Model,
    queries: Annotated[
        Path, typer.Option(help="JSON Lines with `id`, `instruction` and `reference`.", show_default=False)
    ],
    recipe: RecipeName = "reuse",
    backend: options.Backend = "auto",
    tokenizer: options.Tokenizer = None,
    context_length: options.ContextLength = None,
    dtype: options.DType = None,
    tensor_parallel: options.TensorParallel = None,
    gpu_memory: options.GpuMemory = None,
    first: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Use only the first N questions.", show_default=False)
    ] = None,
    real: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of most similar demonstrations to compute; by default the recipe's.", show_default=False
        ),
    ] = None,
    reference_tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of a reference answer.")] = 256,
    max_difference: Annotated[float, typer.Option(help="Largest acceptable increase in nats per token.")] = 0.02,
    min_same_top1: Annotated[
        float, typer.Option(help="Minimum share of positions where both have the same most likely token.")
    ] = 0.94,
    store: StoreFolder = None,
    json: Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare reused keys and values with full attention.

    It uses your own questions. The exit status is 1 if the difference exceeds the limits.

    \b
    Example:
      ragalign kv check indexes/lima --model meta-llama/Llama-3.1-8B \\
          --queries dev.jsonl
    """
    from dataclasses import asdict, replace

    from ragalign._progress import progress
    from ragalign.aligner import Aligner
    from ragalign.errors import DataError
    from ragalign.generation import VllmGenerator
    from ragalign.pool.queries import read_queries
    from ragalign.reuse.checking import ReuseLimits
    from ragalign.reuse.checking import check as compare
    from ragalign.reuse.store import Store
    from ragalign.types import Prompt

    console.be_quiet(quiet)
    asked = read_queries(queries)[:first]
    references = [query.metadata.get("reference") for query in asked]
    for query, reference in zip(asked, references, strict=True):
        if not isinstance(reference, str) or not reference.strip():
            raise DataError(f"{queries}: query {query.id} has no `reference`; give every query a reference answer")
    chosen = _plain(recipe)
    folder = _store_folder(store, index, chosen, model)
    settings = replace(chosen.reuse, enabled=True, real=chosen.reuse.real if real is None else real)
    aligner = Aligner.from_recipe(
        replace(chosen, reuse=settings, decoding=replace(chosen.decoding, max_tokens=reference_tokens)),
        index=index,
        model=model,
        backend=backend,
        tokenizer=tokenizer,
        context_length=context_length,
        store=folder,
        **options.engine(dtype, tensor_parallel, gpu_memory),
    )
    with aligner, progress("comparing", len(asked), "prompts") as advance:
        assert isinstance(aligner.generator, VllmGenerator)
        packed = aligner.pack_many(asked)
        prompts = [prompt for prompt in packed if isinstance(prompt, Prompt)]
        answers = [
            aligner.packer.answer_ids(prompt, str(reference))[:reference_tokens]
            for prompt, reference in zip(packed, references, strict=True)
            if isinstance(prompt, Prompt)
        ]
        manifest = Store(folder).manifest
        limits = ReuseLimits.for_store(manifest, difference=max_difference, same_top1=min_same_top1)
        found = compare(aligner.generator, prompts, answers, limits=limits, advance=advance)
    result: dict[str, Any] = {name: _rounded(value) for name, value in asdict(found).items()}
    if json:
        console.print_json(result | {"n_asked": len(asked), "real": settings.real, "precision": manifest.precision})
    else:
        console.print_table(
            [("", "left"), ("", "right")],
            [
                ("prompts", f"{found.n:,} of {len(asked):,}"),
                ("tokens reused per prompt", f"{found.n_reused_tokens:,.0f} of {found.n_planned_tokens:,.0f}"),
                ("NLL, full attention", f"{found.nll_full:.4f}"),
                ("NLL, reused", f"{found.nll_reused:.4f}"),
                ("difference", f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"),
                ("same most likely token", f"{found.same_top1:.1%}"),
                ("first token, largest difference", f"{found.first_token_logit:.3f}"),
                ("where it must be exact", f"{found.exact_difference:.5f}"),
                ("verdict", found.verdict),
            ],
        )
    if found.verdict == "fail":
        raise typer.Exit(console.EXIT_FAILURE)


def _plain(recipe: str) -> Recipe:
    """The recipe without reuse and planner, for an aligner that only packs."""
    from dataclasses import replace

    from ragalign.planning import PlannerSettings
    from ragalign.recipes import Recipe

    chosen = Recipe.load(recipe)
    return replace(chosen, planner=PlannerSettings(), reuse=replace(chosen.reuse, enabled=False))


def _store_folder(given: Path | None, index: Path, recipe: Recipe, model: str) -> Path:
    from ragalign.reuse.opening import default_store

    if given is not None:
        return given
    return recipe.path(recipe.reuse.store) if recipe.reuse.store else default_store(index, recipe.name, model)


def _stores(place: Path) -> list[Store]:
    """The stores next to an index, or the store in this folder.

    Raises:
        DataError: there is no store.
    """
    import os

    from ragalign.reuse.store import Store

    beside = Path(f"{os.path.normpath(place)}.kv")
    found = sorted(path.parent for path in beside.glob("*/manifest.json"))
    return [Store(folder) for folder in found] if found else [Store(place)]


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value
