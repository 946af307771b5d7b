"""Sweeps: a grid in a TOML file, with a condition per cell.

    recipe = "ica"                      # the base of every cell
    design = "full"                     # every combination; "one-at-a-time" varies one factor and keeps the others

    [factors]
    temperature = [0.0, 0.7]            # any decoding parameter
    demonstrations = [0, 1, 4, 9, 100]
    order = ["most_similar_last", "most_similar_first", "random"]
    retriever = ["dense", "bm25", "hybrid"]
    encoder = ["sentence-transformers/all-MiniLM-L6-v2", "facebook/contriever"]
    budget = [1000, 3000]
    "retriever.options.seed" = [0, 1]   # any other key of a recipe

With "one-at-a-time", the other factors keep their first level.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ragalign._settings import from_table, read_toml
from ragalign.bench.conditions import MAIN, Condition, as_condition, checked
from ragalign.errors import ConfigError
from ragalign.generation import validate
from ragalign.recipes import Recipe
from ragalign.types import Decoding

_ENCODER = "encoder"
_RECIPE = "recipe"
_ALIASES = {
    "demonstrations": "packing.max_demonstrations",
    "order": "packing.order",
    "budget": "packing.max_tokens",
    "retriever": "retriever.name",
    **{each.name: f"decoding.{each.name}" for each in fields(Decoding)},
}


@dataclass(frozen=True, slots=True)
class Grid:
    """The factors of a sweep with their levels.

    Attributes:
        factors: the levels of each factor.
        recipe: the base of every cell; a factor ``recipe`` can vary it.
        design: all combinations, or one factor at a time with the first level of the others.
        folder: the folder that relative paths of recipes start from.
    """

    factors: Mapping[str, list[Any]]
    recipe: str = "ica"
    design: Literal["full", "one-at-a-time"] = "full"
    folder: Path = field(default=Path(), compare=False)

    @classmethod
    def load(cls, path: str | Path) -> Grid:
        """Read a grid.

        Raises:
            ConfigError: the file cannot be read, or a key or level is invalid.
        """
        path = Path(path)
        grid = from_table(cls, {**read_toml(path), "folder": path.parent}, f"grid {path}")
        if not grid.factors:
            raise ConfigError(f"grid {path}: [factors] names nothing that varies")
        for factor, levels in grid.factors.items():
            if not levels:
                raise ConfigError(f"grid {path}: the factor {factor!r} has no levels")
        return grid

    def cells(self) -> Iterator[dict[str, Any]]:
        """The levels of all factors, for each cell."""
        if self.design == "full":
            for cell in itertools.product(*self.factors.values()):
                yield dict(zip(self.factors, cell, strict=True))
            return
        kept = {factor: levels[0] for factor, levels in self.factors.items()}
        yield kept
        for factor, levels in self.factors.items():
            yield from ({**kept, factor: level} for level in levels[1:])

    def conditions(self) -> list[Condition]:
        """Make one condition per cell, named after its levels.

        Raises:
            ConfigError: a factor is unknown, or a level has the wrong type or is out of range.
        """
        varying = [factor for factor, levels in self.factors.items() if len(levels) > 1] or list(self.factors)
        return checked([self._condition(cell, varying) for cell in self.cells()])

    @property
    def encoders(self) -> list[str]:
        """The encoders of the cells, other than that of the main index."""
        return list(map(str, self.factors.get(_ENCODER, [])))

    def _condition(self, cell: Mapping[str, Any], varying: Sequence[str]) -> Condition:
        named = str(cell.get(_RECIPE, self.recipe))
        recipe = Recipe.load(self.folder / named if named.endswith(".toml") else named)
        for factor, level in cell.items():
            if factor not in (_RECIPE, _ENCODER):
                recipe = _changed(recipe, _ALIASES.get(factor, factor), level)
        validate(recipe.decoding)
        name = ", ".join(f"{factor} {_shown(cell[factor])}" for factor in varying)
        levels = {factor: _shown(level) for factor, level in cell.items()}
        return as_condition(recipe, name, index=str(cell.get(_ENCODER, MAIN)), levels=levels)


def _changed(recipe: Recipe, key: str, level: Any) -> Recipe:
    """Change one key of a recipe, with the checks of a recipe file."""
    part, *path = key.split(".")
    known = ("template", "constants", "retriever", "packing", "decoding")
    if part not in known or not path:
        short = ", ".join((_RECIPE, _ENCODER, *_ALIASES))
        raise ConfigError(
            f"grid: unknown factor {key!r}; use {short}, or a recipe's table and key ({', '.join(known)})"
        )
    settings = getattr(recipe, part)
    table = asdict(settings)
    inner = table
    for step in path[:-1]:
        inner = inner.setdefault(step, {})
    inner[path[-1]] = level
    changed = from_table(type(settings), table, f"grid: {key}")
    recipe = replace(recipe, **{part: changed})
    if key == "retriever.name":
        # Other retrievers have other options.
        recipe = replace(recipe, retriever=replace(recipe.retriever, options={}))
    candidates = recipe.retriever.candidates
    if key == "packing.max_demonstrations" and candidates is not None and candidates < level:
        recipe = replace(recipe, retriever=replace(recipe.retriever, candidates=level))
    return recipe


def _shown(level: Any) -> str:
    if isinstance(level, float):
        return f"{level:g}"
    text = str(level)
    # Name the path of an encoder or a file by its last part.
    return text.rstrip("/").rsplit("/", 1)[-1] if "/" in text else text.replace("_", " ")
