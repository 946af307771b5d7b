"""What answering cost, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragalign.statistics import Estimate


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Milliseconds from when the engine took a prompt up to its first token: the median, and where 8 of 10 lie."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Costs:
    """What one condition cost; means are per request, with intervals over prompts.

    Attributes:
        n: requests that were answered; every turn is one.
        n_missing: requests that were not.
        prompt_tokens: tokens of the prompts.
        prefilled_tokens: of these, what the prefix cache did not hold; None where the engine does not say.
        output_tokens: tokens of the answers, all samples together.
        demonstrations: demonstrations in the prompts.
        words: of an answer.
        first_token: see `FirstToken`; None where the engine does not say.
        requests_per_s: answered per second of the engine's work; None where nothing was timed.
        preparation_ms: retrieval and packing, per request, as far as they are not hidden behind the engine's work.
        price_ratio: the engine's seconds per request over those of the fixed demonstrations in the same run.
        n_timed: requests that the speed rests on.
        ends: how answers ended (``stop``, ``length``), as shares of all samples.
        used: how many requests had each demonstration, most frequent first.
        n_leaked: requests whose own text is among their demonstrations; the guard keeps it at 0.
    """

    n: int
    n_missing: int
    prompt_tokens: Estimate
    prefilled_tokens: Estimate | None
    output_tokens: Estimate
    demonstrations: Estimate
    words: Estimate
    first_token: FirstToken | None
    requests_per_s: float | None
    preparation_ms: float | None
    price_ratio: float | None
    n_timed: int
    ends: Mapping[str, float]
    used: Mapping[str, int]
    n_leaked: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values; of the demonstrations, how many there are and the ten most used."""
        first = self.first_token
        return {
            "n": self.n,
            "n_missing": self.n_missing,
            "prompt_tokens": self.prompt_tokens.to_dict(),
            "prefilled_tokens": self.prefilled_tokens.to_dict() if self.prefilled_tokens else None,
            "output_tokens": self.output_tokens.to_dict(),
            "demonstrations": self.demonstrations.to_dict(),
            "words": self.words.to_dict(),
            "first_token_ms": {"median": first.median, "p10": first.low, "p90": first.high} if first else None,
            "requests_per_s": self.requests_per_s,
            "preparation_ms": self.preparation_ms,
            "price_ratio": self.price_ratio,
            "n_timed": self.n_timed,
            "ends": dict(self.ends),
            "n_used_demonstrations": len(self.used),
            "most_used_demonstrations": dict(list(self.used.items())[:10]),
            "n_leaked": self.n_leaked,
        }
