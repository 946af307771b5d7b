"""Running all checks that apply to a model, a recipe and an index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragalign.doctor import index_checks, prompt_checks, tokenizer_checks, weight_checks
from ragalign.doctor.checks import Check, run
from ragalign.doctor.subject import Subject
from ragalign.recipes import Recipe


@dataclass(frozen=True, slots=True)
class Examination:
    """The results of all checks of a model.

    Attributes:
        model: the model, as named by the user.
        checks: the results, in order.
    """

    model: str
    checks: tuple[Check, ...]

    @property
    def is_fit(self) -> bool:
        """Whether no check is "wrong"; there can be warnings."""
        return all(check.status != "wrong" for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """``{"model", "checks": [{"name", "status", "detail"}]}``."""
        checks = [{"name": check.name, "status": check.status, "detail": check.detail} for check in self.checks]
        return {"model": self.model, "checks": checks}


def examine(
    model: str | Path,
    *,
    recipe: str | Path | Recipe = "ica",
    index: str | Path | None = None,
    weights: bool = True,
    n_answers: int = 3,
    max_new_tokens: int = 160,
) -> Examination:
    """Check whether a model is suitable for in-context alignment.

    Args:
        model: a folder, a Hub id, a GGUF file or ``packaged:NAME``.
        recipe: the recipe to use with the model.
        index: the folder of the index that the recipe retrieves from.
        weights: whether to load the weights, for the checks of BOS by likelihood and of stop strings.
        n_answers: number of questions to answer for the check of stop strings.
        max_new_tokens: maximum tokens of these answers.

    Raises:
        ConfigError: no such model or recipe.
        GenerationError, MissingDependencyError: as `ragalign.models.locate_model`.
    """
    subject = Subject.of(model, recipe if isinstance(recipe, Recipe) else Recipe.load(recipe))
    checks: list[Check] = []

    def look(name: str, check: Callable[[], Iterator[Check]]) -> None:
        checks.extend(run(name, check))

    look("versions", weight_checks.versions)
    look("tokenizer", lambda: tokenizer_checks.vocabulary(subject))
    look("kind", lambda: tokenizer_checks.kind(subject))
    look("special-tokens", lambda: tokenizer_checks.special_tokens(subject))
    look("memory", lambda: weight_checks.memory(subject))
    look("context", lambda: prompt_checks.context(subject))
    look("joins", lambda: prompt_checks.joins(subject))
    if index is not None:
        look("index", lambda: index_checks.index(Path(index), subject.recipe))
    if weights:
        with weight_checks.loaded(subject) as generator:
            look("bos", lambda: weight_checks.bos(subject, generator))
            look("stops", lambda: weight_checks.stops(subject, generator, n_answers, max_new_tokens))
    else:
        look("bos", lambda: weight_checks.bos(subject, None))
    return Examination(str(model), tuple(checks))
