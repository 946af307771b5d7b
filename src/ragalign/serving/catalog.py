"""The served recipes, and replacing them while requests run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ragalign.aligner import Aligner
from ragalign.errors import ConfigError
from ragalign.packing import Packing
from ragalign.serving.errors import ApiError

_MOST_TUNED = 64

Load = Callable[[], Mapping[str, Aligner]]


@dataclass(frozen=True, eq=False)
class Catalog:
    """An immutable generation of aligners: a request that starts with it also ends with it.

    Attributes:
        name: the model's name; ``NAME`` is its default recipe, ``NAME:RECIPE`` another one.
        default: the recipe of the plain name.
        aligners: the aligners by recipe.
        version: number of reloads.
    """

    name: str
    default: str
    aligners: Mapping[str, Aligner]
    version: int = 1
    _tuned: dict[tuple[int, Packing, int | None], Aligner] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.default not in self.aligners:
            raise ConfigError(f"no recipe {self.default!r} is served; use one of {', '.join(self.aligners)}")

    @property
    def models(self) -> list[str]:
        """All model names, the plain one first."""
        return [self.name, *(f"{self.name}:{recipe}" for recipe in self.aligners)]

    def resolve(self, model: str) -> tuple[str, Aligner]:
        """The recipe of a model name.

        Raises:
            ApiError: 404.
        """
        if model == self.name:
            return self.default, self.aligners[self.default]
        name, _, recipe = model.rpartition(":")
        if name == self.name and recipe in self.aligners:
            return recipe, self.aligners[recipe]
        shown = ", ".join(self.models)
        raise ApiError(404, f"no model {model[:200]!r}; use one of {shown}", param="model", code="model_not_found")

    def reloaded(self, aligners: Mapping[str, Aligner]) -> Catalog:
        """Return the next generation."""
        return Catalog(self.name, self.default, dict(aligners), self.version + 1)

    def tuned(self, aligner: Aligner, packing: Packing, candidates: int | None) -> Aligner:
        """An aligner of this catalog with other limits. Equal ones are cached; the oldest is evicted first."""
        key = (id(aligner), packing, candidates)
        if key not in self._tuned:
            self._tuned[key] = aligner.with_packing(packing, candidates=candidates)
            if len(self._tuned) > _MOST_TUNED:
                self._tuned.pop(next(iter(self._tuned)))
        return self._tuned[key]
