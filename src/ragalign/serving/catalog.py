"""The recipes that are served, and how they are replaced while requests run."""

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
    """One generation of aligners, never changed: a request that began with it ends with it.

    Attributes:
        name: of the model; ``NAME`` is its default recipe, ``NAME:RECIPE`` another one.
        default: the recipe that the bare name selects.
        aligners: by recipe.
        version: counts the reloads.
    """

    name: str
    default: str
    aligners: Mapping[str, Aligner]
    version: int = 1
    _tuned: dict[tuple[int, Packing, int | None], Aligner] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.default not in self.aligners:
            raise ConfigError(f"no recipe {self.default!r} is served; there are {', '.join(self.aligners)}")

    @property
    def models(self) -> list[str]:
        """All model names, the bare one first."""
        return [self.name, *(f"{self.name}:{recipe}" for recipe in self.aligners)]

    def resolve(self, model: str) -> tuple[str, Aligner]:
        """The recipe that a model's name selects.

        Raises:
            ApiError: 404.
        """
        if model == self.name:
            return self.default, self.aligners[self.default]
        name, _, recipe = model.rpartition(":")
        if name == self.name and recipe in self.aligners:
            return recipe, self.aligners[recipe]
        shown = ", ".join(self.models)
        raise ApiError(404, f"no model {model[:200]!r}; there are {shown}", param="model", code="model_not_found")

    def reloaded(self, aligners: Mapping[str, Aligner]) -> Catalog:
        """The next generation."""
        return Catalog(self.name, self.default, dict(aligners), self.version + 1)

    def tuned(self, aligner: Aligner, packing: Packing, candidates: int | None) -> Aligner:
        """An aligner of this catalog with other limits; equal ones are shared, and the oldest is forgotten first."""
        key = (id(aligner), packing, candidates)
        if key not in self._tuned:
            self._tuned[key] = aligner.with_packing(packing, candidates=candidates)
            if len(self._tuned) > _MOST_TUNED:
                self._tuned.pop(next(iter(self._tuned)))
        return self._tuned[key]
