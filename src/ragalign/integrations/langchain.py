"""LangChain: an example selector for ragalign indexes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragalign._optional import require
from ragalign.errors import ConfigError, DataError
from ragalign.indexes import Index
from ragalign.retrieval import Exclusion, make_retriever

if TYPE_CHECKING:
    from langchain_core.example_selectors import BaseExampleSelector


def example_selector(
    index: str | Path | Index,
    *,
    k: int = 9,
    retriever: str = "dense",
    input_key: str | None = None,
    exclude: Exclusion | None = None,
    where: Mapping[str, Any] | None = None,
    most_similar_last: bool = True,
    **options: Any,
) -> BaseExampleSelector:
    """Create a LangChain example selector that retrieves demonstrations, such as for ``FewShotPromptTemplate``.

    Examples are dictionaries with the keys ``instruction``, ``response``, ``id`` and ``score`` (text).

    Args:
        index: an index or its folder.
        k: maximum number of examples.
        retriever: the name of a retriever.
        input_key: the input variable with the query; by default the only one.
        exclude: demonstrations not to retrieve; by default those whose instruction is the query.
        where: metadata values that demonstrations must match.
        options: options of the retriever.
        most_similar_last: put the most similar example last, next to the question; False puts it first.

    Raises:
        ConfigError, IndexFormatError: an argument is invalid, or there is no index.
        MissingDependencyError: ``langchain-core`` is not installed.
    """
    selectors: Any = require("langchain_core.example_selectors", "the LangChain adapter")
    opened = index if isinstance(index, Index) else Index.open(index)
    found = make_retriever(retriever, opened, **options)
    excluded = Exclusion() if exclude is None else exclude

    class Selector(selectors.BaseExampleSelector):  # type: ignore[misc]
        """The selector. An index is immutable, so no examples can be added."""

        def add_example(self, example: dict[str, str]) -> Any:
            """Not supported.

            Raises:
                ConfigError: always.
            """
            raise ConfigError("examples cannot be added through LangChain; use `ragalign index add`")

        def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
            """Select examples for a query."""
            [hits] = found.retrieve([_query(input_variables, input_key)], k, exclude=excluded, where=where)
            examples = []
            for hit in reversed(hits) if most_similar_last else hits:
                demonstration = found.pool.get(hit.id)
                texts = {"instruction": demonstration.instruction, "response": demonstration.response}
                examples.append({**texts, "id": hit.id, "score": f"{hit.score:.4f}"})
            return examples

        async def aselect_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
            """Select examples for a query in a thread."""
            return await asyncio.to_thread(self.select_examples, input_variables)

    return Selector()


def _query(variables: Mapping[str, str], key: str | None) -> str:
    given: object = variables
    if not isinstance(given, Mapping):
        raise DataError(f"the input variables must be a mapping, not {type(given).__name__}")
    if key is None:
        if len(variables) != 1:
            raise ConfigError(
                f"cannot tell which input variable is the query ({', '.join(variables) or 'none'}); set input_key"
            )
        [key] = variables
    if key not in variables:
        raise ConfigError(f"no input variable {key!r}; the variables are {', '.join(variables)}")
    value: object = variables[key]
    if not isinstance(value, str):
        raise DataError(f"the input variable {key!r} must be text, not {type(value).__name__}")
    return value
