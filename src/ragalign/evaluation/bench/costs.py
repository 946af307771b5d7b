"""What answering cost: tokens, seconds, lengths, how answers ended, and which demonstrations were used how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ragalign.evaluation.bench.cases import Cases
from ragalign.evaluation.bench.running import Answered
from ragalign.statistics import Estimate, mean
from ragalign.text import normalise
from ragalign.types import Demonstration


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


def costs_of(
    answered: Sequence[Answered],
    cases: Cases,
    known: Mapping[str, Demonstration],
    *,
    fixed: str | None = None,
) -> dict[str, Costs]:
    """The costs of every condition, by its name.

    Args:
        answered: what was answered.
        cases: what was asked.
        known: demonstrations by id, to see whether a query was its own.
        fixed: the condition with fixed demonstrations that prices are relative to.
    """
    seconds = {one.condition.name: one.pace.engine_seconds / one.pace.n for one in answered if one.pace.n}
    base = seconds.get(fixed) if fixed is not None else None
    return {one.condition.name: _costs(one, cases, known, seconds.get(one.condition.name), base) for one in answered}


def _costs(
    answered: Answered, cases: Cases, known: Mapping[str, Demonstration], seconds: float | None, base: float | None
) -> Costs:
    rows = list(answered.requests())
    prompts = [str(row["id"]) for row in rows]
    outputs = [text for row in rows for text in row.get("responses", [row["response"]])]
    owners = [str(row["id"]) for row in rows for _ in row.get("responses", [row["response"]])]
    prefilled = [
        None if row.get("n_cached_tokens") is None else row["n_prompt_tokens"] - row["n_cached_tokens"] for row in rows
    ]
    used = Counter(name for row in rows for name in row["demonstrations"])
    pace = answered.pace
    n_asked = sum(len(case.turns) for case in cases.cases)
    return Costs(
        n=len(rows),
        n_missing=n_asked - len(rows),
        prompt_tokens=mean([row["n_prompt_tokens"] for row in rows], prompts),
        prefilled_tokens=mean(prefilled, prompts) if any(one is not None for one in prefilled) else None,
        output_tokens=mean([row["n_output_tokens"] for row in rows], prompts),
        demonstrations=mean([len(row["demonstrations"]) for row in rows], prompts),
        words=mean([len(text.split()) for text in outputs], owners),
        first_token=_first_token([row["first_token_s"] for row in rows if row.get("first_token_s") is not None]),
        requests_per_s=1 / seconds if seconds else None,
        preparation_ms=1000 * max(0.0, pace.seconds - pace.engine_seconds) / pace.n if pace.n else None,
        price_ratio=seconds / base if seconds and base else None,
        n_timed=pace.n,
        ends={reason: n / len(rows) for reason, n in Counter(row["finish_reason"] for row in rows).most_common()},
        used=dict(sorted(used.items(), key=lambda pair: (-pair[1], pair[0]))),
        n_leaked=_leaked(rows, known),
    )


def _first_token(seconds: Sequence[float]) -> FirstToken | None:
    if not seconds:
        return None
    # NumPy's interpolation between equal values is exact, so that no decile passes the median.
    low, median, high = (1000 * np.quantile(seconds, [0.1, 0.5, 0.9])).tolist()
    return FirstToken(median, low, high)


def _leaked(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Demonstration]) -> int:
    """Requests that had a demonstration with their own text."""
    texts: dict[str, str] = {}

    def text_of(name: str) -> str:
        if name not in texts:
            texts[name] = normalise(known[name].instruction) if name in known else ""
        return texts[name]

    return sum(
        any(text_of(name) == normalise(str(row["instruction"])) for name in row["demonstrations"]) for row in rows
    )
