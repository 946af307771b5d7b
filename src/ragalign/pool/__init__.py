"""Pools of demonstrations: read, deduplicated, fingerprinted, saved."""

from __future__ import annotations

from ragalign.pool.duplicates import Duplicate
from ragalign.pool.pool import Pool
from ragalign.pool.queries import read_queries
from ragalign.pool.report import FileReport, LoadReport, SkippedRow

__all__ = ["Duplicate", "FileReport", "LoadReport", "Pool", "SkippedRow", "read_queries"]
