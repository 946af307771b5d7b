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
    """A recipe in a run, with its index.

    Attributes:
        name: unique in a run.
        recipe: the recipe, which has the condition's name.
        index: name of the run's index that it retrieves from.
        levels: in a sweep, the level of every factor, as text.
        retriever: makes a retriever that replaces the recipe's, for those that recipes cannot name.
    """

    name: str
    recipe: Recipe
    index: str = MAIN
    levels: Mapping[str, str] = field(default_factory=dict)
    retriever: Callable[[Index], Retriever] | None = None

    @property
    def retrieves(self) -> bool:
        """Whether the condition needs an index."""
        return self.recipe.retriever.name != "none"

    @property
    def is_fixed(self) -> bool:
        """Whether every prompt begins with the same demonstrations and has no others."""
        settings = self.recipe.constants
        has_constants = bool(settings.file or settings.pool or self.recipe.template.prompt_file)
        return self.recipe.retriever.name == "fixed" or (has_constants and not self.retrieves)

    def settings(self) -> dict[str, Any]:
        """Everything that determines prompts and answers, as JSON values; texts as hashes."""
        content = self.recipe.content()
        if self.retrieves:
            content["retriever"]["index"] = self.index
        return content


def conditions_of(names_or_files: Sequence[str]) -> list[Condition]:
    """Load conditions from recipes by name or file.

    Raises:
        ConfigError: a recipe is invalid, or two have the same name.
    """
    conditions = [as_condition(Recipe.load(source)) for source in names_or_files]
    return checked(conditions)


def as_condition(recipe: Recipe, name: str | None = None, **others: Any) -> Condition:
    """Make a condition from a recipe, with the recipe's or another name."""
    named = replace(recipe, name=recipe.name if name is None else name)
    return Condition(named.name, named, **others)


def checked(conditions: Sequence[Condition]) -> list[Condition]:
    """Check that there are conditions and that their names are unique.

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
    """Change the decoding of all conditions, such as their seed."""
    return [replace(each, recipe=replace(each.recipe, decoding=change(each.recipe.decoding))) for each in conditions]


def guarded(conditions: Sequence[Condition], near: float | None = None) -> list[Condition]:
    """Enable the leakage guard in all conditions, so that no query is its own demonstration.

    Args:
        conditions: the conditions.
        near: also exclude demonstrations with at least this cosine similarity to the query.
    """
    found = []
    for condition in conditions:
        settings = condition.recipe.retriever
        settings = replace(
            settings, exclude_same_text=True, exclude_near=settings.exclude_near if near is None else near
        )
        found.append(replace(condition, recipe=replace(condition.recipe, retriever=settings)))
    return found
