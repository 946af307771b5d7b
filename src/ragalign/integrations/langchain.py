"""For LangChain: an example selector over a ragalign index."""

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
    """Demonstrations of an index as a LangChain example selector, for ``FewShotPromptTemplate`` and its kin.

    Examples are dictionaries with the keys ``instruction``, ``response``, ``id`` and ``score`` (text).

    Args:
        index: an index or its folder.
        k: most examples.
        retriever: a strategy's name.
        input_key: which input variable is the query; by default the only one.
        exclude: what must not be retrieved; by default, demonstrations that ask the query itself.
        where: metadata that demonstrations must have.
        options: the strategy's own.
        most_similar_last: in prompt order, nearest the question; False is best first.

    Raises:
        ConfigError, IndexFormatError: an argument is wrong, or there is no index.
        MissingDependencyError: ``langchain-core`` is not installed.
    """
    selectors: Any = require("langchain_core.example_selectors", "the LangChain adapter")
    opened = index if isinstance(index, Index) else Index.open(index)
    found = make_retriever(retriever, opened, **options)
    excluded = Exclusion() if exclude is None else exclude

    class Selector(selectors.BaseExampleSelector):  # type: ignore[misc]
        """The selector; an index does not change, so nothing can be added to it."""

        def add_example(self, example: dict[str, str]) -> Any:
            """Refuse.

            Raises:
                ConfigError: always.
            """
            raise ConfigError("an index is changed with `ragalign index add`, not through LangChain")

        def select_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
            """The examples for a query."""
            [hits] = found.retrieve([_query(input_variables, input_key)], k, exclude=excluded, where=where)
            examples = []
            for hit in reversed(hits) if most_similar_last else hits:
                demonstration = found.pool.get(hit.id)
                texts = {"instruction": demonstration.instruction, "response": demonstration.response}
                examples.append({**texts, "id": hit.id, "score": f"{hit.score:.4f}"})
            return examples

        async def aselect_examples(self, input_variables: dict[str, str]) -> list[dict[str, Any]]:
            """The examples for a query, found in a thread."""
            return await asyncio.to_thread(self.select_examples, input_variables)

    return Selector()


def _query(variables: Mapping[str, str], key: str | None) -> str:
    if key is None:
        if len(variables) != 1:
            raise ConfigError(f"which of {', '.join(variables) or 'no variables'} is the query? Give input_key")
        [key] = variables
    if key not in variables:
        raise ConfigError(f"no input variable {key!r}; there are {', '.join(variables)}")
    value: object = variables[key]
    if not isinstance(value, str):
        raise DataError(f"the input variable {key!r} must be text, not {type(value).__name__}")
    return value
