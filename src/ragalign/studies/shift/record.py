"""Records of the analysis, per answer and position, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AlignedAnswer:
    """The aligned model's greedy answer to one query.

    Attributes:
        id: the query's id.
        instruction: the query's last user turn.
        prompt_text: the aligned model's prompt.
        prompt_ids, token_ids: token ids of the prompt, and of the answer without its stop string or end mark.
        pieces: the text of each token; joined, they are the answer.
        categories: the category of each token (see `kinds`).
        logprobs: the aligned model's log probability of each token.
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
        """Create a record from the values of `to_dict`."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Place:
    """The base model's reading of a token of an answer, in a context.

    Attributes:
        rank: the token's rank in the base model's distribution; 1 is its first choice.
        logprob: natural logarithm of its probability.
        kl: KL(aligned || base) in nats (a lower bound if only the most probable tokens are known); None where the
            models split the text with different tokens here.
        best: the base model's most probable tokens, as (text, log probability).
    """

    rank: int
    logprob: float
    kl: float | None
    best: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The base model's reading of an answer in a context.

    Attributes:
        id: the query's id.
        n_prompt_tokens: tokens of the base model's prompt.
        n_demonstrations: demonstrations in that prompt.
        places: one per token of the answer; None where the base model's tokenizer splits the text differently.
    """

    id: str
    n_prompt_tokens: int
    n_demonstrations: int
    places: tuple[Place | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; places are lists, to save space."""
        places = [
            place
            and [
                place.rank,
                _short(place.logprob),
                _short(place.kl),
                [[text, _short(value)] for text, value in place.best],
            ]
            for place in self.places
        ]
        return {
            "id": self.id,
            "n_prompt_tokens": self.n_prompt_tokens,
            "n_demonstrations": self.n_demonstrations,
            "places": places,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Reading:
        """Create a record from the values of `to_dict`."""
        places = tuple(
            None
            if place is None
            else Place(place[0], place[1], place[2], tuple((text, value) for text, value in place[3]))
            for place in values["places"]
        )
        return cls(values["id"], values["n_prompt_tokens"], values["n_demonstrations"], places)


def _short(value: float | None) -> float | None:
    return None if value is None else round(float(value), 5)
