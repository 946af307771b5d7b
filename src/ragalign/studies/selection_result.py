"""Options and results of the search for constant demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ragalign.errors import ConfigError
from ragalign.statistics import Estimate
from ragalign.types import Demonstration


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        add: maximum demonstrations to add.
        candidates: number of candidates, drawn from the pool with the seed.
        max_evaluations: maximum sets of demonstrations to evaluate on the development prompts. Evaluations of earlier
            runs count too, so that an interrupted run takes the same steps as an uninterrupted one.
        held_out: share of the prompts to hold out.
        seed: seed of all random draws.

    Raises:
        ConfigError: a number is out of range.
    """

    add: int = 3
    candidates: int = 20
    max_evaluations: int = 100
    held_out: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("add", "candidates", "max_evaluations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out must be between 0 and 1, not {self.held_out:g}")


@dataclass(frozen=True, slots=True)
class Step:
    """A round of the search.

    Attributes:
        added: the id of the demonstration added; None if no candidate was better.
        score: the best mean score so far, on the search's prompts.
        n_tried: candidates evaluated in this round.
        is_complete: whether all candidates were evaluated, rather than stopped by `max_evaluations`.
    """

    added: str | None
    score: float
    n_tried: int
    is_complete: bool


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """The result of a search.

    Attributes:
        constants: the demonstrations in prompt order: the initial ones, then the added ones.
        n_begun: the number of initial demonstrations.
        steps: the rounds.
        n_evaluations: sets evaluated on the search's prompts.
        search_gain: mean score with the added demonstrations minus without, on the search's prompts.
        held_out_gain: the same on the held-out prompts, with a paired interval.
        before, after: mean scores on the held-out prompts.
    """

    constants: tuple[Demonstration, ...]
    n_begun: int
    steps: tuple[Step, ...]
    n_evaluations: int
    search_gain: Estimate
    held_out_gain: Estimate
    before: Estimate
    after: Estimate

    @property
    def optimism(self) -> float:
        """The gain on the search's prompts minus the gain on the held-out prompts."""
        return self.search_gain.value - self.held_out_gain.value

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "constants": [demonstration.id for demonstration in self.constants],
            "n_begun": self.n_begun,
            "steps": [
                {"added": step.added, "score": step.score, "n_tried": step.n_tried, "is_complete": step.is_complete}
                for step in self.steps
            ],
            "n_evaluations": self.n_evaluations,
            "search_gain": self.search_gain.to_dict(),
            "held_out_gain": self.held_out_gain.to_dict(),
            "held_out_before": self.before.to_dict(),
            "held_out_after": self.after.to_dict(),
            "optimism": self.optimism,
        }
