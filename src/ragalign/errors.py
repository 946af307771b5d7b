"""The error tree: everything that ragalign raises on purpose.

    RagalignError
    ├── ConfigError             a recipe, an option or an argument is wrong
    ├── DataError               a pool or query file holds something unusable
    ├── IndexFormatError        an index folder is damaged or of another version
    ├── IndexMismatchError      an index and what is asked of it do not belong together
    ├── BudgetError             a query does not fit into the token budget
    ├── MissingDependencyError  an optional package is not installed
    ├── GenerationError         a generator failed
    └── JudgeError              a judge failed

A message says what was wrong, where, and what to do. The command line prints it in one line.
"""

from __future__ import annotations


class RagalignError(Exception):
    """Base of every error that ragalign raises on purpose."""


class ConfigError(RagalignError):
    """A recipe, an option or an argument is wrong."""


class DataError(RagalignError):
    """A pool or query file holds something that cannot be used."""


class IndexFormatError(RagalignError):
    """An index folder is missing, damaged or of another format version."""


class IndexMismatchError(RagalignError):
    """An index and what is asked of it do not belong together, such as another encoder."""


class BudgetError(RagalignError):
    """A query does not fit into the token budget; it is never truncated."""


class MissingDependencyError(RagalignError):
    """An optional package is not installed; the message holds the pip command."""


class GenerationError(RagalignError):
    """A generator failed, or an endpoint kept failing after its retries."""


class JudgeError(RagalignError):
    """A judge failed in a way that no retry mends."""
