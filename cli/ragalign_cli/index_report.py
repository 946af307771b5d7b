"""The report of `ragalign index` about an index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragalign_cli import console
from ragalign_cli.pool_options import file_records, print_files

if TYPE_CHECKING:
    from ragalign.indexes import Index
    from ragalign.indexes.manifest import Manifest
    from ragalign.pool import Pool


def print_built(index: Index, pool: Pool | None, folder: Path, seconds: float, json: bool) -> None:
    """Print what was built, and with `pool` how many rows of each file are in it."""
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    about = index.manifest
    if json:
        record: dict[str, Any] = {"index": str(folder), "n_demonstrations": len(index)}
        record |= {"dimension": about.encoder.dimension, "factory": about.factory, "metric": about.metric}
        record |= {
            "n_truncated": about.n_truncated,
            "encoder": about.encoder.id,
            "seconds": round(seconds, 3),
            "bytes": size,
        }
        console.print_json(record | ({"files": file_records(pool.report)} if pool is not None else {}))
        return
    if pool is not None:
        print_files(pool.report)
    console.stdout().print(
        f"\n{folder}: {len(index):,} demonstrations x {about.encoder.dimension} dimensions, {about.factory}, "
        f"{about.metric}, {size / 1e6:,.1f} MB, {seconds:.1f} s"
    )
    if about.encoder.packaged:
        console.note(
            f"{about.encoder.id}: the Hugging Face Hub is unreachable, so the packaged copy of the weights was used"
        )


def info_rows(manifest: Manifest) -> list[tuple[str, str]]:
    """The rows of `ragalign index info`."""
    encoder = manifest.encoder
    packaged = ", packaged copy" if encoder.packaged else ""
    prompts = f"{encoder.query_prompt!r}, {encoder.document_prompt!r}"
    return [
        ("demonstrations", f"{manifest.n_demonstrations:,}"),
        ("encoder", f"{encoder.id} (revision {encoder.revision[:12]}{packaged})"),
        ("dimension", f"{encoder.dimension}, {'normalised' if encoder.normalize else 'not normalised'}"),
        ("query, document prompt", prompts),
        ("text", manifest.text),
        ("truncated", _truncated(manifest)),
        ("metric", manifest.metric),
        ("FAISS", f"{manifest.factory} {dict(manifest.search) or ''}".rstrip()),
        ("pool fingerprint", manifest.pool_fingerprint[:16]),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())),
    ]


def _truncated(manifest: Manifest) -> str:
    limit = manifest.encoder.max_tokens
    if manifest.n_truncated is None:
        return "not counted: the index was built by an older version"
    if limit is None:
        return "none: the encoder has no token limit"
    n = manifest.n_demonstrations
    return f"{manifest.n_truncated:,} of {n:,} texts are longer than the encoder's {limit:,} tokens"
