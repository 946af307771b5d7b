"""The conditions of a run: recipes under unique names, each with one of the run's indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ragalign.errors import ConfigError
from ragalign.indexes import Index
from ragalign.recipes import Recipe
from ragalign.retrieval import Retriever
from ragalign.types import Decoding

MAIN = ""
"""The name of the index that conditions use unless they name another."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to answer.

    Attributes:
        name: unique in a run.
        recipe: the parts; its name is the condition's.
        index: which of the run's indexes it retrieves from.
        levels: in a sweep, the level of every factor, as text.
        retriever: makes a retriever that no recipe can name, in place of the recipe's.
    """

    name: str
    recipe: Recipe
    index: str = MAIN
    levels: Mapping[str, str] = field(default_factory=dict)
    retriever: Callable[[Index], Retriever] | None = None

    @property
    def retrieves(self) -> bool:
        """Whether it needs an index."""
        return self.recipe.retriever.name != "none"

    @property
    def is_fixed(self) -> bool:
        """Whether every prompt begins with the same demonstrations and has no others."""
        settings = self.recipe.constants
        has_constants = bool(settings.file or settings.pool or self.recipe.template.prompt_file)
        return self.recipe.retriever.name == "fixed" or (has_constants and not self.retrieves)

    def settings(self) -> dict[str, Any]:
        """All that decides its prompts and answers, as JSON values; texts by their hashes."""
        content = self.recipe.content()
        if self.retrieves:
            content["retriever"]["index"] = self.index
        return content


def conditions_of(names_or_files: Sequence[str]) -> list[Condition]:
    """Conditions from recipes by name or file.

    Raises:
        ConfigError: a recipe is wrong, or two have the same name.
    """
    conditions = [as_condition(Recipe.load(one)) for one in names_or_files]
    return checked(conditions)


def as_condition(recipe: Recipe, name: str | None = None, **others: Any) -> Condition:
    """A recipe as a condition, under its own name or another."""
    named = replace(recipe, name=recipe.name if name is None else name)
    return Condition(named.name, named, **others)


def checked(conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions, if their names are unique.

    Raises:
        ConfigError: there is none, or two have the same name.
    """
    names = [condition.name for condition in conditions]
    if not names:
        raise ConfigError("nothing to compare: name at least one recipe")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"two recipes are called {repeated[0]!r}: give each a name of its own")
    return list(conditions)


def decoded(conditions: Sequence[Condition], change: Callable[[Decoding], Decoding]) -> list[Condition]:
    """The conditions with their decoding changed, such as by a seed for all."""
    return [replace(one, recipe=replace(one.recipe, decoding=change(one.recipe.decoding))) for one in conditions]


def guarded(conditions: Sequence[Condition], near: float | None = None) -> list[Condition]:
    """The conditions with the leakage guard on, whatever their recipes say: no query is its own demonstration.

    Args:
        conditions: what is compared.
        near: also exclude demonstrations with at least this cosine similarity to the query.
    """
    found = []
    for one in conditions:
        settings = one.recipe.retriever
        settings = replace(
            settings, exclude_same_text=True, exclude_near=settings.exclude_near if near is None else near
        )
        found.append(replace(one, recipe=replace(one.recipe, retriever=settings)))
    return found
