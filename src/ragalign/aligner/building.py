"""The parts of an aligner, made from a recipe."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ragalign.errors import ConfigError
from ragalign.generation.presets import without_unsupported
from ragalign.generator import Generator
from ragalign.indexes import DiskIndex, Index, open_index
from ragalign.models import locate_model
from ragalign.packing import Packer
from ragalign.pool import Pool
from ragalign.pool.stored import Demonstrations
from ragalign.recipes import Recipe
from ragalign.retrieval import Exclusion, SupportsRetrieve, make_retriever
from ragalign.reuse.opening import (
    check_backend,
    check_model,
    check_same_model,
    default_store,
    engine_config,
    open_store,
    reusing,
)
from ragalign.reuse.store import Store
from ragalign.tokenization import Tokenizer
from ragalign.types import Decoding


def parts_of(
    recipe: Recipe,
    *,
    index: str | Path | Index | DiskIndex | None,
    model: str | Path | Generator | None,
    backend: str,
    tokenizer: str | Path | Tokenizer | None,
    context_length: int | None,
    store: str | Path | None,
    ray: str | None,
    workers: int | None,
    generator_options: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of `Aligner` for a recipe; see `Aligner.from_recipe`.

    Everything is checked before the engine starts, which is slow.
    """
    template, constants = recipe.make_template()
    index, retriever = _retriever(recipe, index)
    pool: Demonstrations = retriever.pool if retriever is not None else Pool.from_demonstrations([])
    folder = index.folder if index is not None else None
    cache = None if folder is None else folder.with_name(f"{folder.name}.tokens")
    loaded = _tokenizer(tokenizer, model)
    settings = recipe.retriever
    exclude = Exclusion(same_text=settings.exclude_same_text, near=settings.exclude_near)
    if retriever is not None:
        retriever.check_where(settings.where)
    packer = Packer(
        template,
        loaded,
        pool,
        packing=recipe.packing,
        constants=constants,
        context_length=context_length,
        cache=cache,
    )
    options = dict(generator_options)
    kept = None
    if recipe.reuse.enabled:
        kept = _open_store(recipe, packer, folder, model, store)
        if kept is not None and isinstance(model, str | Path):
            check_backend(backend)
            check_model(model, context_length, generator_options)
            check_same_model(kept, model, generator_options.get("dtype"))
            options["kv_transfer_config"] = engine_config(kept, recipe.reuse)
    named = tokenizer if isinstance(tokenizer, str | Path) else None
    generator = _generator(model, backend, context_length, named, options, ray, workers)
    try:
        if generator is not None and context_length is None:
            packer = packer.with_context_length(generator.context_length)
        return {
            "packer": packer,
            "retriever": retriever,
            "generator": generator,
            "decoding": _supported_decoding(recipe, generator),
            "candidates": settings.candidates,
            "exclude": exclude,
            "where": settings.where,
            "planner": recipe.planner,
            "name": recipe.name,
            "reuse": None if kept is None else reusing(packer, kept, recipe.reuse),
        }
    except BaseException:
        if generator is not None and generator is not model:
            generator.close()
        raise


def _retriever(
    recipe: Recipe, index: str | Path | Index | DiskIndex | None
) -> tuple[Index | DiskIndex | None, SupportsRetrieve | None]:
    if recipe.retriever.name == "none":
        return None, None
    if index is None:
        raise ConfigError(f"the recipe {recipe.name!r} retrieves demonstrations: name an index")
    if not isinstance(index, Index | DiskIndex):
        index = open_index(index)
    return index, make_retriever(recipe.retriever.name, index, **recipe.retriever.options)


def _tokenizer(tokenizer: str | Path | Tokenizer | None, model: str | Path | Generator | None) -> Tokenizer:
    if tokenizer is None:
        if not isinstance(model, str | Path):
            raise ConfigError("no tokenizer: name the folder or Hub id of the model's tokenizer")
        # Located as a model, so that a GGUF file's weights and tokenizer are read in one pass.
        tokenizer = locate_model(model)
    return tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)


def _open_store(
    recipe: Recipe,
    packer: Packer,
    index: str | Path | None,
    model: str | Path | Generator | None,
    store: str | Path | None,
) -> Store | None:
    """The store that a recipe reuses; None if none is named and this machine runs no engine.

    Raises:
        ConfigError, DataError: an engine needs a store and there is none, or it was made for other prompts.
    """
    starts = isinstance(model, str | Path)
    named = store or (recipe.path(recipe.reuse.store) if recipe.reuse.store else None)
    if named is None and index is not None and isinstance(model, str | Path):
        named = default_store(index, recipe.name, model)
    if named is None:
        if starts:
            raise ConfigError(f"the recipe {recipe.name!r} reuses keys and values: name their folder (store)")
        return None
    return open_store(named, packer)


def _generator(
    model: str | Path | Generator | None,
    backend: str,
    context_length: int | None,
    tokenizer: str | Path | None,
    options: Mapping[str, Any],
    ray: str | None,
    workers: int | None,
) -> Generator | None:
    if isinstance(model, str | Path):
        from ragalign.executors.factory import start_generator

        return start_generator(
            backend,
            model=str(model),
            context_length=context_length,
            tokenizer=tokenizer,
            ray=ray,
            workers=workers,
            **options,
        )
    if ray is not None or workers is not None:
        raise ConfigError("ray and workers need the model's name or folder, not a generator object")
    if options:
        raise ConfigError(f"generator options ({', '.join(options)}) need a model: pass its name or folder")
    return model


def _supported_decoding(recipe: Recipe, generator: Generator | None) -> Decoding:
    """The recipe's decoding without what the generator does not support, which is warned about."""
    if generator is None:
        return recipe.decoding
    decoding, lost = without_unsupported(recipe.decoding, getattr(generator, "unsupported", ()))
    if lost:
        warnings.warn(
            f"recipe {recipe.name}: ignoring {' and '.join(lost)}, which this backend does not support; run "
            "the model with vLLM or transformers here, or choose another decoding",
            stacklevel=4,
        )
    return decoding
