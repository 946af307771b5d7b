"""Creating retrievers by name, for recipes and the command line."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any, overload

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.indexes.on_disk import DiskIndex
from ragalign.retrieval.base import Retriever
from ragalign.retrieval.bm25 import Bm25Retriever
from ragalign.retrieval.dense import DenseRetriever
from ragalign.retrieval.dpp import DppRetriever
from ragalign.retrieval.fixed import FixedRetriever
from ragalign.retrieval.hybrid import HybridRetriever
from ragalign.retrieval.mmr import MmrRetriever
from ragalign.retrieval.on_disk import DiskRetriever
from ragalign.retrieval.random import RandomRetriever
from ragalign.retrieval.rerank import RerankRetriever
from ragalign.retrieval.utility import UtilityRetriever

_STRATEGIES: Mapping[str, type[Retriever]] = {
    strategy.name: strategy
    for strategy in (
        DenseRetriever,
        Bm25Retriever,
        HybridRetriever,
        MmrRetriever,
        DppRetriever,
        RerankRetriever,
        UtilityRetriever,
        RandomRetriever,
        FixedRetriever,
    )
}


def retriever_names(index: Index | DiskIndex | None = None) -> tuple[str, ...]:
    """The names of all retrievers, or of those over this index, for `make_retriever`."""
    return (DiskRetriever.name,) if isinstance(index, DiskIndex) else tuple(_STRATEGIES)


def retriever_class(name: str) -> type[Retriever]:
    """The class of the retriever ``name``.

    Raises:
        ConfigError: no such retriever.
    """
    if name not in _STRATEGIES:
        raise ConfigError(f"no retriever {name!r}; choose one of: {', '.join(_STRATEGIES)}")
    return _STRATEGIES[name]


def retriever_options(name: str) -> tuple[str, ...]:
    """The options of the retriever ``name``, as written in recipes.

    Raises:
        ConfigError: no such retriever.
    """
    return tuple(parameter.rstrip("_") for parameter in _parameters(retriever_class(name)))


@overload
def make_retriever(name: str, index: Index, /, **options: Any) -> Retriever: ...
@overload
def make_retriever(name: str, index: Index | DiskIndex, /, **options: Any) -> Retriever | DiskRetriever: ...
def make_retriever(name: str, index: Index | DiskIndex, /, **options: Any) -> Retriever | DiskRetriever:
    """Create the retriever ``name`` over ``index``; over an index on disk, only ``dense``.

    Options are the arguments of its class; ``lambda`` means ``lambda_``. Options that are retrievers (``first``,
    ``retrievers``) can be names, as in ``first="bm25"``, or mappings with a name and options, as in
    ``first={"name": "bm25", "k1": 1.2}``.

    Raises:
        ConfigError: the name, an option or its value is invalid; the message lists the valid names or options.
    """
    chosen: type[Retriever | DiskRetriever] = retriever_class(name)
    if isinstance(index, DiskIndex):
        if name not in retriever_names(index):
            raise ConfigError(f"{index.folder} is an index on disk, which has no retriever {name!r}; use 'dense'")
        chosen = DiskRetriever
    parameters = _parameters(chosen)
    given = {f"{option}_" if iskeyword(option) else option: value for option, value in options.items()}
    unknown = [option.rstrip("_") for option in given if option not in parameters]
    if unknown:
        valid = ", ".join(parameter.rstrip("_") for parameter in parameters) or "none"
        raise ConfigError(f"retriever {name!r} has no option {', '.join(map(repr, unknown))}; its options: {valid}")
    if isinstance(index, DiskIndex):
        return DiskRetriever(index, **given)
    if given.get("first") is not None:
        given["first"] = _stage(given["first"], index)
    if given.get("retrievers") is not None:
        stages = given["retrievers"]
        if not isinstance(stages, list | tuple):
            raise ConfigError(f"{name}: retrievers must be a list of retrievers, not {stages!r}")
        given["retrievers"] = [_stage(stage, index) for stage in stages]
    return retriever_class(name)(index, **given)  # type: ignore[arg-type]


def _parameters(chosen: type[Retriever | DiskRetriever]) -> list[str]:
    signature = inspect.signature(chosen)
    return [parameter.name for parameter in signature.parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]


def _stage(stage: object, index: Index) -> Retriever:
    if isinstance(stage, Retriever):
        return stage
    if isinstance(stage, str):
        return make_retriever(stage, index)
    if isinstance(stage, Mapping) and isinstance(stage.get("name"), str):
        options = {option: value for option, value in stage.items() if option != "name"}
        return make_retriever(stage["name"], index, **options)
    raise ConfigError(f"a retriever must be a name or a mapping with a name and options, not {stage!r}")
