"""ragalign: make base language models answer like assistants, without fine-tuning.

The public names load on first use, so that ``import ragalign`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragalign.aligner import Aligner
    from ragalign.encoders import Encoder
    from ragalign.errors import RagalignError
    from ragalign.generator import Generator
    from ragalign.indexes import Index
    from ragalign.judging.base import Verdict
    from ragalign.judging.judges import Judge
    from ragalign.packing import Packer
    from ragalign.planning import Planner
    from ragalign.pool import Pool
    from ragalign.recipes import Recipe
    from ragalign.reports.report import Report
    from ragalign.retrieval import Retriever
    from ragalign.templates import Template
    from ragalign.types import Completion, Decoding, Demonstration, Hit, Prompt

_HOME = {
    "Aligner": "aligner",
    "Completion": "types",
    "Decoding": "types",
    "Demonstration": "types",
    "Encoder": "encoders",
    "Generator": "generator",
    "Hit": "types",
    "Index": "indexes",
    "Judge": "judging.judges",
    "Packer": "packing",
    "Planner": "planning",
    "Pool": "pool",
    "Prompt": "types",
    "RagalignError": "errors",
    "Recipe": "recipes",
    "Report": "reports.report",
    "Retriever": "retrieval",
    "Template": "templates",
    "Verdict": "judging.base",
}

__all__ = [
    "Aligner",
    "Completion",
    "Decoding",
    "Demonstration",
    "Encoder",
    "Generator",
    "Hit",
    "Index",
    "Judge",
    "Packer",
    "Planner",
    "Pool",
    "Prompt",
    "RagalignError",
    "Recipe",
    "Report",
    "Retriever",
    "Template",
    "Verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
