"""`ragalign index --on-disk`: build an index from files that are read one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ragalign_cli import console
from ragalign_cli.pool_options import note_unused, warn_of_skipped

if TYPE_CHECKING:
    from ragalign.encoders import Encoder
    from ragalign.indexes import DiskIndex, DiskManifest, Metric, TextForm
    from ragalign.indexes.disk_writing import Batch
    from ragalign.pool import Pool


def build(
    files: Sequence[str],
    load: Callable[[list[str]], Pool],
    encoder: Encoder,
    out: Path,
    *,
    as_stored: bool,
    kind: str,
    metric: Metric,
    text: TextForm,
) -> DiskIndex:
    """Build an index on disk.

    Args:
        files: the files of demonstrations.
        load: reads a file whole.
        as_stored: whether files that ragalign wrote as Parquet are read in parts, without `load`.
        encoder: makes the vectors.
        out: the folder to write.
        kind: ``auto`` or a FAISS factory string.
        metric: as for `ragalign.indexes.DiskIndex.build`.
        text: the texts to encode.

    Raises:
        ConfigError: the disk has too little room for the files whose rows can be counted beforehand, and as
            `ragalign.indexes.DiskIndex.build`.
        DataError, IndexFormatError: see there.
        typer.Exit: the user interrupted it.
    """
    from ragalign._progress import progress
    from ragalign.indexes import DiskIndex
    from ragalign.indexes.batches import encoded, n_stored, stored_pools
    from ragalign.indexes.disk_writing import check_space

    counts = {file: n_stored(file) if as_stored else None for file in files}
    if n := sum(count or 0 for count in counts.values()):
        check_space(out, n, encoder.dimension, kind)

    def pools() -> Iterator[Pool]:
        for file in files:
            if counts[file] is not None:
                yield from stored_pools([file])
            else:
                pool = load([file])
                warn_of_skipped(pool.report)
                note_unused(pool.report)
                yield pool

    try:
        with progress("indexing", None, "demonstrations") as advance:

            def batches() -> Iterator[Batch]:
                for batch in encoded(pools(), encoder, text=text):
                    yield batch
                    advance(len(batch[0]))

            return DiskIndex.build(out, batches(), encoder=encoder, factory=kind, metric=metric, text=text)
    except KeyboardInterrupt:
        console.note("interrupted; nothing was written" if not out.exists() else f"interrupted; {out} is complete")
        raise typer.Exit(console.EXIT_INTERRUPTED) from None


def print_built(index: DiskIndex, seconds: float, json: bool) -> None:
    """Print what was built."""
    about = index.manifest
    size = sum(file.size for file in about.files)
    if json:
        console.print_json(
            {
                "index": str(index.folder), "n_demonstrations": len(index), "dimension": about.dimension,
                "factory": about.factory, "metric": about.metric, "n_truncated": about.n_truncated,
                "encoder": about.encoder and about.encoder.id, "seconds": round(seconds, 3), "bytes": size,
                "on_disk": True,
            }
        )  # fmt: skip
        return
    console.stdout().print(
        f"{index.folder}: {len(index):,} demonstrations x {about.dimension} dimensions on disk, {about.factory}, "
        f"{about.metric}, {size / 1e6:,.1f} MB, {seconds:.1f} s"
    )


def info_rows(about: DiskManifest) -> list[tuple[str, str]]:
    """The rows of `ragalign index info`."""
    encoder = about.encoder
    return [
        ("demonstrations", f"{about.n_demonstrations:,}, on disk"),
        ("encoder", "not recorded" if encoder is None else f"{encoder.id} (revision {encoder.revision[:12]})"),
        ("dimension", f"{about.dimension:,}"),
        ("text", about.text),
        ("truncated", "not counted" if about.n_truncated is None else f"{about.n_truncated:,} texts"),
        ("metric", about.metric),
        ("FAISS", about.factory),
        ("pool fingerprint", about.pool_fingerprint[:16]),
        ("size", f"{sum(file.size for file in about.files) / 1e6:,.1f} MB"),
    ]
