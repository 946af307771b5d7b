"""Opening an index of either kind."""

from __future__ import annotations

from pathlib import Path

from ragalign.encoders import Encoder
from ragalign.indexes.index import Index
from ragalign.indexes.on_disk import DiskIndex
from ragalign.indexes.store import DISK_MANIFEST, MANIFEST, as_folder

AnyIndex = Index | DiskIndex


def is_on_disk(folder: str | Path) -> bool:
    """Whether a folder holds an index on disk, by the names of its files."""
    path = as_folder(folder)
    return (path / DISK_MANIFEST).is_file() and not (path / MANIFEST).exists()


def open_index(folder: str | Path, *, encoder: Encoder | None = None) -> AnyIndex:
    """Open an index, in memory or on disk.

    Raises:
        IndexFormatError: the folder is neither, or is damaged.
        IndexMismatchError: the index was built with another encoder.
    """
    return (DiskIndex if is_on_disk(folder) else Index).open(folder, encoder=encoder)
