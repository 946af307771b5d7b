"""Pools of demonstrations: read, deduplicated, fingerprinted, saved."""

from __future__ import annotations

from ragalign.pool.duplicates import Duplicate
from ragalign.pool.pool import Pool
from ragalign.pool.queries import read_queries
from ragalign.pool.report import FileReport, LoadReport, SkippedRow
from ragalign.pool.summary import Lengths, word_lengths

__all__ = [
    "Duplicate",
    "FileReport",
    "Lengths",
    "LoadReport",
    "Pool",
    "SkippedRow",
    "read_queries",
    "word_lengths",
]
