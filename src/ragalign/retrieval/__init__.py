"""Retrieval: strategies that find demonstrations for queries in an index."""

from __future__ import annotations

from ragalign.retrieval.base import Exclusion, Retriever, SupportsRetrieve
from ragalign.retrieval.batch import QueryBatch
from ragalign.retrieval.bm25 import Bm25Retriever
from ragalign.retrieval.dense import DenseRetriever
from ragalign.retrieval.dpp import DppRetriever
from ragalign.retrieval.fixed import FixedRetriever
from ragalign.retrieval.hybrid import HybridRetriever
from ragalign.retrieval.mmr import MmrRetriever
from ragalign.retrieval.on_disk import DiskRetriever
from ragalign.retrieval.random import RandomRetriever
from ragalign.retrieval.ranking import Ranking
from ragalign.retrieval.registry import make_retriever, retriever_names, retriever_options
from ragalign.retrieval.rerank import RerankRetriever
from ragalign.retrieval.utility import UtilityRetriever

__all__ = [
    "Bm25Retriever",
    "DenseRetriever",
    "DiskRetriever",
    "DppRetriever",
    "Exclusion",
    "FixedRetriever",
    "HybridRetriever",
    "MmrRetriever",
    "QueryBatch",
    "RandomRetriever",
    "Ranking",
    "RerankRetriever",
    "Retriever",
    "SupportsRetrieve",
    "UtilityRetriever",
    "make_retriever",
    "retriever_names",
    "retriever_options",
]
