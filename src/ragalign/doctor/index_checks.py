"""Checks of an index: its files, its encoder, and the number of truncated texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ragalign.doctor.checks import Check
from ragalign.errors import IndexFormatError, IndexMismatchError, RagalignError
from ragalign.recipes import Recipe


def index(folder: Path, recipe: Recipe) -> Iterator[Check]:
    """Check that the index can be searched with its encoder."""
    from ragalign.indexes import Index

    try:
        manifest = Index.verify(folder)
    except IndexFormatError as error:
        yield Check("index", "wrong", str(error))
        return
    yield Check("index", "ok", f"{manifest.n_demonstrations:,} demonstrations; all files are intact")
    try:
        opened = Index.open(folder)
        encoder = opened.encoder
        found = opened.search(encoder.encode([opened.pool.instructions[0]], kind="query"), 1)
    except IndexMismatchError as error:
        yield Check("encoder", "wrong", str(error))
        return
    except RagalignError as error:
        yield Check("encoder", "wrong", f"the index cannot be searched: {error}")
        return
    if recipe.index.encoder and recipe.index.encoder != encoder.id:
        yield Check(
            "encoder",
            "wrong",
            f"the index was built with {encoder.id}, but the recipe {recipe.name!r} names {recipe.index.encoder}; "
            "build it again with `ragalign index --recipe`",
        )
        return
    del found
    cut = manifest.n_truncated
    if cut:
        yield Check(
            "encoder",
            "warning",
            f"{encoder.id} reads {encoder.max_tokens} tokens: {cut:,} of {manifest.n_demonstrations:,} texts are "
            "longer, and their ends are not searched",
        )
    else:
        known = "none of the texts is longer" if cut == 0 else "how many texts are longer is not recorded"
        yield Check("encoder", "ok", f"{encoder.id} reads {encoder.max_tokens} tokens; {known}")
