"""Indexes: a pool, its vectors and a FAISS index, in memory or on disk, in a folder."""

from ragalign.indexes.index import Index
from ragalign.indexes.manifest import EncoderRecord, FileRecord, Manifest, Metric, TextForm
from ragalign.indexes.on_disk import DiskIndex, DiskManifest
from ragalign.indexes.opening import is_on_disk, open_index

__all__ = [
    "DiskIndex",
    "DiskManifest",
    "EncoderRecord",
    "FileRecord",
    "Index",
    "Manifest",
    "Metric",
    "TextForm",
    "is_on_disk",
    "open_index",
]
