"""The cost of answering, as a report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ragalign.statistics import Estimate

QUIET = 0.1
"""The largest acceptable difference between two measurements of the same work, as a share."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Milliseconds from a request to its first token, to an idle engine: median, 10th and 90th percentiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class RelativePrice:
    """The engine's seconds relative to another condition's, from rounds that ask both.

    Attributes:
        ratio: the median of the rounds' ratios.
        low, high: the least and the greatest of them.
    """

    ratio: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return {"ratio": self.ratio, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Timing:
    """The setup of a speed measurement.

    Attributes:
        base: the condition that prices are relative to.
        n_rounds: interleaved rounds.
        n_prompts: prompts that every condition answered in each.
        empties_cache: whether the prefix cache was emptied before each.
        control: the price of the base itself, timed twice per round: 1 on a quiet machine.
    """

    base: str
    n_rounds: int
    n_prompts: int
    empties_cache: bool
    control: RelativePrice

    @property
    def is_quiet(self) -> bool:
        """Whether two measurements of the same work differ by at most 10 %."""
        return abs(self.control.ratio - 1) <= QUIET

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "base": self.base,
            "n_rounds": self.n_rounds,
            "n_prompts": self.n_prompts,
            "empties_cache": self.empties_cache,
            "control": self.control.to_dict(),
            "is_quiet": self.is_quiet,
        }


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of one condition; means are per request, with intervals over prompts.

    Attributes:
        n: requests that were answered; every turn is one.
        n_missing: requests that were not.
        prompt_tokens: tokens of the prompts.
        prefilled_tokens: of these, what the engine computed; None where it does not say.
        reused_tokens: of these, tokens of demonstrations whose kept keys and values were reused; None if there were
            none.
        reused_bytes: the size of these keys and values per request; None if unknown.
        output_tokens: tokens of the answers, all samples together.
        demonstrations: demonstrations in the prompts.
        words: of an answer.
        stopped: answers that ended by themselves, in percent of the requests.
        repeated: word 4-grams of an answer that occurred in it before, in percent.
        length_ratio: words of an answer over those of the references; None where there are none.
        first_token: see `FirstToken`; None where nothing was timed, as with the next three.
        requests_per_s: answered per second of the engine's work.
        preparation_ms: retrieval and packing, per request.
        price: the engine's seconds relative to those of the fixed demonstrations.
        ends: how answers ended (``stop``, ``length``), as shares of all samples.
        used: how many requests had each demonstration, most frequent first.
        n_leaked: requests whose own text is among their demonstrations; the guard keeps it at 0.
    """

    n: int
    n_missing: int
    prompt_tokens: Estimate
    prefilled_tokens: Estimate | None
    reused_tokens: Estimate | None
    reused_bytes: float | None
    output_tokens: Estimate
    demonstrations: Estimate
    words: Estimate
    stopped: Estimate
    repeated: Estimate
    length_ratio: Estimate | None
    first_token: FirstToken | None
    requests_per_s: float | None
    preparation_ms: float | None
    price: RelativePrice | None
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
            **({"reused_tokens": self.reused_tokens.to_dict()} if self.reused_tokens else {}),
            **({} if self.reused_bytes is None else {"reused_bytes": self.reused_bytes}),
            "output_tokens": self.output_tokens.to_dict(),
            "demonstrations": self.demonstrations.to_dict(),
            "words": self.words.to_dict(),
            "shape": {
                "stopped": self.stopped.to_dict(),
                "repeated_4grams": self.repeated.to_dict(),
                "length_ratio": self.length_ratio.to_dict() if self.length_ratio else None,
            },
            "first_token_ms": {"median": first.median, "p10": first.low, "p90": first.high} if first else None,
            "requests_per_s": self.requests_per_s,
            "preparation_ms": self.preparation_ms,
            "price_ratio": self.price.ratio if self.price else None,
            "price_spread": [self.price.low, self.price.high] if self.price else None,
            "ends": dict(self.ends),
            "n_used_demonstrations": len(self.used),
            "most_used_demonstrations": dict(list(self.used.items())[:10]),
            "n_leaked": self.n_leaked,
        }
