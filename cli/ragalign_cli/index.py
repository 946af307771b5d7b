"""`ragalign index`: build, update and check indexes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ragalign_cli import console, index_on_disk
from ragalign_cli.help import Command, group
from ragalign_cli.index_report import info_rows, print_built
from ragalign_cli.options import Quiet, Ray, Workers, check_cluster
from ragalign_cli.paths import out_folder
from ragalign_cli.pool_options import (
    Fields,
    Metadata,
    OnError,
    Shape,
    Unwrap,
    load,
    note_unused,
    warn_of_skipped,
)

if TYPE_CHECKING:
    from ragalign.encoders import Encoder
    from ragalign.pool import Pool

app = group()

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The index folder.", show_default=False)]
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pool", metavar="FILE", help="A file of demonstrations or a dataset name. Repeatable.", show_default=False
    ),
]
Near = Annotated[
    float | None,
    typer.Option(
        "--near-duplicates",
        metavar="S",
        help="Leave out instructions this similar to an earlier one (Jaccard, such as 0.8).",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


@app.callback(invoke_without_command=True)
def index(
    context: typer.Context,
    pools: Pools = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="ID_OR_FOLDER", help="A sentence-transformers model; by default MiniLM.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The index folder to write.", show_default=False, callback=out_folder),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="Take these settings from a recipe's [index] table; --out is then the recipe's name.",
            show_default=False,
        ),
    ] = None,
    normalize: Annotated[
        bool | None, typer.Option(help="Scale vectors to unit length (the default).", show_default=False)
    ] = None,
    query_prompt: Annotated[
        str | None, typer.Option(help="Prefix for queries, if the encoder expects one.", show_default=False)
    ] = None,
    document_prompt: Annotated[str | None, typer.Option(help="Prefix for indexed texts.", show_default=False)] = None,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"] | None,
        typer.Option(
            help="Precision of the encoder's weights: float32 (the default), bfloat16 (about twice as fast on CPUs "
            "that support it), or auto (bfloat16 on those CPUs).",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Literal["instruction", "both"] | None,
        typer.Option(
            help="Text to encode: instruction (the default), or both instruction and response.", show_default=False
        ),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="Index type: auto, flat, hnsw, ivf or a FAISS factory string.", show_default=False),
    ] = None,
    metric: Annotated[
        Literal["cosine", "ip", "l2"] | None,
        typer.Option(help="Similarity: cosine (the default), ip or l2.", show_default=False),
    ] = None,
    shape: Shape = "auto",
    field: Fields = None,
    on_error: OnError = "strict",
    metadata: Metadata = None,
    unwrap: Unwrap = False,
    near_duplicates: Near = None,
    on_disk: Annotated[
        bool,
        typer.Option(
            "--on-disk",
            help="Keep vectors and texts on disk, for pools larger than memory. Files are read one at a time.",
        ),
    ] = False,
    cache: Annotated[bool, typer.Option(help="Cache embeddings for the next build.")] = True,
    ray: Ray = None,
    workers: Workers = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build an index from files of demonstrations.

    An existing index is replaced; if the build is interrupted, the old index is kept.

    \b
    Examples:
      ragalign index --pool answers.jsonl --out indexes/mine
      ragalign index --pool lima.jsonl --pool alpaca.json \\
          --encoder facebook/contriever --out indexes/both
      ragalign index --pool sharegpt.json --unwrap --on-error skip \\
          --kind IVF256,PQ48 --out indexes/large
      ragalign index --recipe indexes/starter.toml
      ragalign index --pool large.parquet --out indexes/large \\
          --ray auto --workers 8
      ragalign index --pool part-0.parquet --pool part-1.parquet \\
          --on-disk --out indexes/huge
    """
    if context.invoked_subcommand is not None:
        return
    console.be_quiet(quiet)
    check_cluster(ray, workers)
    from ragalign.encoders import DEFAULT_ENCODER, Encoder
    from ragalign.errors import ConfigError
    from ragalign.indexes import Index
    from ragalign.indexes.store import refuse_other_folders
    from ragalign.recipes import IndexSettings, Recipe

    settings = IndexSettings()
    if recipe is not None:
        loaded = Recipe.load(recipe)
        found = loaded.index
        settings = replace(found, pool=tuple(map(loaded.source, found.pool)))
        out = out or loaded.folder / loaded.name
    if not (pools or settings.pool):
        raise ConfigError("give --pool FILE, or --recipe FILE with an [index] table")
    if out is None:
        raise ConfigError("give --out DIR, the index folder to write")
    out_folder(out)
    start = time.perf_counter()
    near = settings.near_duplicates if near_duplicates is None else near_duplicates
    sources = list(pools or settings.pool)
    given_shape = shape if shape != "auto" else settings.shape
    given_fields = field or [f"{name}={own}" for name, own in settings.fields.items()]
    unwrap = unwrap or settings.unwrap
    metadata = metadata or list(settings.metadata)
    load_pool = partial(
        load,
        shape=given_shape,
        field=given_fields,
        on_error="skip" if "skip" in (on_error, settings.on_error) else "strict",
        unwrap=unwrap,
        metadata=metadata,
    )
    pool = None
    if on_disk:
        _check_on_disk(out, near)
    else:
        refuse_other_folders(out)
        pool = _without_near_duplicates(load_pool(sources), near)
        warn_of_skipped(pool.report)
        note_unused(pool.report)
    load_encoder = Encoder.load if ray is None else partial(_encoder_on, ray, workers)
    with ExitStack() as stack:
        chosen = load_encoder(
            encoder or settings.encoder or DEFAULT_ENCODER,
            normalize=settings.normalize if normalize is None else normalize,
            query_prompt=settings.query_prompt if query_prompt is None else query_prompt,
            document_prompt=settings.document_prompt if document_prompt is None else document_prompt,
            precision=precision or settings.precision,
            cache="default" if cache else None,
        )
        stack.callback(getattr(chosen, "close", lambda: None))
        options: dict[str, Any] = {
            "kind": kind or settings.kind, "metric": metric or settings.metric, "text": text or settings.text
        }  # fmt: skip
        if pool is None:
            as_stored = given_shape == "auto" and not (given_fields or unwrap or metadata)
            stored = index_on_disk.build(sources, load_pool, chosen, out, as_stored=as_stored, **options)
            index_on_disk.print_built(stored, time.perf_counter() - start, json)
            return
        built = Index.build(pool, chosen, **options, show_progress=True)
    built.save(out)
    print_built(built, pool, out, time.perf_counter() - start, json)


@app.command(cls=Command)
def add(
    folder: Folder,
    pools: Pools = None,
    shape: Shape = "auto",
    field: Fields = None,
    on_error: OnError = "strict",
    metadata: Metadata = None,
    unwrap: Unwrap = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add demonstrations to an index.

    Demonstrations that are already in the index are skipped.

    \b
    Example:
      ragalign index add indexes/mine --pool more.jsonl
    """
    from ragalign.errors import ConfigError
    from ragalign.indexes import Index

    console.be_quiet(quiet)
    if not pools:
        raise ConfigError("give --pool FILE, the demonstrations to add")
    start = time.perf_counter()
    pool = load(pools, shape, field, on_error, unwrap, metadata)
    warn_of_skipped(pool.report)
    note_unused(pool.report)
    grown = Index.open(folder).add(pool, show_progress=True)
    grown.save(folder)
    print_built(grown, pool, folder, time.perf_counter() - start, json)


@app.command(cls=Command)
def remove(
    folder: Folder,
    ids: Annotated[
        list[str] | None,
        typer.Option(
            "--id",
            metavar="ID",
            help="A demonstration's id, or its id in the source file. Repeatable.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Remove demonstrations by id.

    \b
    Example:
      ragalign index remove indexes/mine --id 0f3a9c5d11e2b7a4 --id lima-17
    """
    from ragalign.errors import ConfigError
    from ragalign.indexes import Index

    if not ids:
        raise ConfigError("give --id ID, the demonstration to remove")
    start = time.perf_counter()
    opened = Index.open(folder)
    smaller = opened.remove(_ids(opened.pool, ids))
    smaller.save(folder)
    print_built(smaller, None, folder, time.perf_counter() - start, json)


@app.command(cls=Command)
def verify(folder: Folder, json: Json = False) -> None:
    """Verify every file of an index.

    \b
    Example:
      ragalign index verify indexes/mine
    """
    from ragalign.indexes import DiskIndex, Index, is_on_disk

    manifest = (DiskIndex if is_on_disk(folder) else Index).verify(folder)
    if json:
        console.print_json({"index": str(folder), "ok": True, "n_demonstrations": manifest.n_demonstrations})
    else:
        console.stdout().print(f"{folder}: {manifest.n_demonstrations:,} demonstrations, all files intact")


@app.command(cls=Command)
def info(folder: Folder, json: Json = False) -> None:
    """Show an index's encoder, settings and size.

    \b
    Example:
      ragalign index info indexes/mine --json
    """
    from ragalign.indexes import DiskIndex, Index, is_on_disk

    if is_on_disk(folder):
        about = DiskIndex.open(folder).manifest
        if json:
            console.print_json({"index": str(folder), **asdict(about)})
        else:
            console.print_table([("", "left"), ("", "left")], index_on_disk.info_rows(about))
        return
    manifest = Index.open(folder, verify="size").manifest
    if json:
        console.print_json({"index": str(folder), **manifest.to_dict()})
    else:
        console.print_table([("", "left"), ("", "left")], info_rows(manifest))


def _encoder_on(ray: str, workers: int | None, encoder: str, **options: Any) -> Encoder:
    from ragalign.executors import RayEncoder

    return RayEncoder(encoder, address=ray, workers=workers, **options)


def _check_on_disk(out: Path, near: float | None) -> None:
    from ragalign.errors import ConfigError

    if near is not None:
        raise ConfigError(
            "--near-duplicates compares all demonstrations in memory: remove them from each file first, "
            "with `ragalign pool dedupe`"
        )
    if out.exists():
        raise ConfigError(f"{out} exists; an index on disk is not replaced: choose another folder, or remove it")


def _without_near_duplicates(pool: Pool, near: float | None) -> Pool:
    if near is None:
        return pool
    kept = pool.deduplicate(near)
    if len(kept) < len(pool):
        console.note(f"left out {len(pool) - len(kept):,} near-duplicates of {len(pool):,} demonstrations")
    return kept


def _ids(pool: Pool, given: list[str]) -> list[str]:
    """Content ids of the given ids, which can also be ids from the source files."""
    by_source: dict[str, list[str]] = {}
    for id_, source_id in zip(pool.ids, pool.table["source_id"].to_pylist(), strict=True):
        by_source.setdefault(source_id, []).append(id_)
    return [id_ for name in given for id_ in by_source.get(name, [name])]
