"""What the analysis finds, per answer and position, as plain data that JSON holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AlignedAnswer:
    """The aligned model's greedy answer to one query.

    Attributes:
        id: the query's.
        instruction: its last user turn.
        prompt_text: what the aligned model was given.
        prompt_ids, token_ids: of that prompt, and of the answer without what ended it.
        pieces: the text of each token; their sum is the answer.
        categories: of each token (see `kinds`).
        logprobs: the aligned model's own, of each token.
    """

    id: str
    instruction: str
    prompt_text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]
    categories: tuple[str, ...]
    logprobs: tuple[float, ...]

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.pieces)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AlignedAnswer:
        """From `to_dict`'s JSON."""
        given: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Place:
    """What the base model makes of one token of an answer, in one context.

    Attributes:
        rank: of the token among what the base model expects; 1 is its first choice.
        logprob: natural logarithm of its probability.
        kl: KL(aligned || base) in nats (a lower bound where only the most probable tokens are known); None where the
            models split the text with different tokens here.
        best: the base model's most probable tokens, as (text, log-probability).
    """

    rank: int
    logprob: float
    kl: float | None
    best: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer in one context of the base model.

    Attributes:
        id: the query's.
        n_prompt_tokens: of the base model's prompt.
        n_demonstrations: in that prompt.
        places: one per token of the answer; None where the base model splits the text otherwise.
    """

    id: str
    n_prompt_tokens: int
    n_demonstrations: int
    places: tuple[Place | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a place is a list, since there are many."""
        places = [
            one and [one.rank, _short(one.logprob), _short(one.kl), [[text, _short(value)] for text, value in one.best]]
            for one in self.places
        ]
        return {
            "id": self.id,
            "n_prompt_tokens": self.n_prompt_tokens,
            "n_demonstrations": self.n_demonstrations,
            "places": places,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reading:
        """From `to_dict`'s JSON."""
        places = tuple(
            None if one is None else Place(one[0], one[1], one[2], tuple((text, value) for text, value in one[3]))
            for one in values["places"]
        )
        return cls(values["id"], values["n_prompt_tokens"], values["n_demonstrations"], places)


def _short(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)
