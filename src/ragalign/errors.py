"""The exceptions that ragalign raises.

    RagalignError
    ├── ConfigError             a recipe, an option or an argument is wrong
    ├── DataError               a pool, query or answer file holds something unusable
    ├── IndexFormatError        an index folder is missing, damaged or of another format version
    ├── IndexMismatchError      an index does not match the request, such as its encoder
    ├── BudgetError             a query does not fit the token budget
    ├── MissingDependencyError  an optional package is not installed
    ├── GenerationError         a generator failed
    └── JudgeError              a judge failed

A message says what was wrong, where, and what to do. The command line prints it in one line.
"""

from __future__ import annotations


class RagalignError(Exception):
    """Base class of all ragalign exceptions."""


class ConfigError(RagalignError):
    """A recipe, an option or an argument is wrong."""


class DataError(RagalignError):
    """A pool, query or answer file holds something that cannot be used."""


class IndexFormatError(RagalignError):
    """An index folder is missing, damaged or of another format version."""


class IndexMismatchError(RagalignError):
    """An index does not match the request: it was built with another encoder, for example."""


class BudgetError(RagalignError):
    """A query does not fit the token budget. Queries are never truncated."""


class MissingDependencyError(RagalignError):
    """An optional package is not installed; the message has the pip command."""


class GenerationError(RagalignError):
    """A generator failed, or an endpoint kept failing after its retries."""


class JudgeError(RagalignError):
    """A judge failed in a way that a retry cannot fix."""
