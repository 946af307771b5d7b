"""Indexes: a pool, its vectors and a FAISS index, in memory or as a folder."""

from ragalign.indexes.index import Index
from ragalign.indexes.manifest import EncoderRecord, FileRecord, Manifest, Metric, TextForm

__all__ = ["EncoderRecord", "FileRecord", "Index", "Manifest", "Metric", "TextForm"]
