"""The cost of answering: tokens, seconds, lengths, how answers ended, and how often demonstrations were used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ragalign.bench.answers import Answered
from ragalign.bench.cases import Cases
from ragalign.bench.timing import Timings
from ragalign.measures.shape import length_ratio, repetition
from ragalign.reports.costs import Costs, FirstToken
from ragalign.statistics import mean
from ragalign.text import normalise
from ragalign.types import Demonstration


def costs_of(
    answered: Sequence[Answered],
    cases: Cases,
    known: Mapping[str, Demonstration],
    timings: Timings | None = None,
) -> dict[str, Costs]:
    """Compute the costs of every condition, by name.

    Args:
        answered: the answers of the conditions.
        cases: the prompts.
        known: demonstrations by id, to detect queries among their own demonstrations.
        timings: the measured speed of the conditions, if any.
    """
    return {answers.condition.name: _costs(answers, cases, known, timings) for answers in answered}


def _costs(answered: Answered, cases: Cases, known: Mapping[str, Demonstration], timings: Timings | None) -> Costs:
    rows = list(answered.requests())
    prompts = [str(row["id"]) for row in rows]
    outputs = [text for row in rows for text in row.get("responses", [row["response"]])]
    owners = [str(row["id"]) for row in rows for _ in row.get("responses", [row["response"]])]
    prefilled = [
        None
        if row.get("n_cached_tokens") is None
        else row["n_prompt_tokens"] - row["n_cached_tokens"] - row.get("n_reused_tokens", 0)
        for row in rows
    ]
    reused = [row.get("n_reused_tokens", 0) for row in rows]
    reused_tokens = mean(reused, prompts) if any(reused) else None
    size = answered.bytes_per_reused_token
    used = Counter(used for row in rows for used in row["demonstrations"])
    name = answered.condition.name
    n_asked = sum(len(case.turns) for case in cases.cases)
    ratios = [length_ratio(text, alternatives) for text, alternatives in _with_references(answered, cases)]
    return Costs(
        n=len(rows),
        n_missing=n_asked - len(rows),
        prompt_tokens=mean([row["n_prompt_tokens"] for row in rows], prompts),
        prefilled_tokens=mean(prefilled, prompts) if any(count is not None for count in prefilled) else None,
        reused_tokens=reused_tokens,
        reused_bytes=None if size is None or reused_tokens is None else size * reused_tokens.value,
        output_tokens=mean([row["n_output_tokens"] for row in rows], prompts),
        demonstrations=mean([len(row["demonstrations"]) for row in rows], prompts),
        words=mean([len(text.split()) for text in outputs], owners),
        stopped=mean([100.0 * (row["finish_reason"] == "stop") for row in rows], prompts),
        repeated=mean([None if (share := repetition(text)) is None else 100 * share for text in outputs], owners),
        length_ratio=mean(ratios, owners) if any(ratio is not None for ratio in ratios) else None,
        first_token=_first_token(timings.first_tokens_s(name)) if timings else None,
        requests_per_s=timings.requests_per_s(name) if timings else None,
        preparation_ms=1000 * timings.preparation_s(name) if timings else None,
        price=timings.price(name) if timings else None,
        ends={reason: n / len(rows) for reason, n in Counter(row["finish_reason"] for row in rows).most_common()},
        used=dict(sorted(used.items(), key=lambda pair: (-pair[1], pair[0]))),
        n_leaked=_leaked(rows, known),
    )


def _with_references(answered: Answered, cases: Cases) -> Iterator[tuple[str, Sequence[str]]]:
    """Every answer, in the order of the requests, with the references of its turn."""
    known = {case.id: case.references for case in cases.cases}
    for turn, rows in enumerate(answered.rows):
        for name, row in rows.items():
            alternatives = known[name][turn] if len(known[name]) > turn else ()
            for text in row.get("responses", [row["response"]]):
                yield text, alternatives


def _first_token(seconds: Sequence[float]) -> FirstToken | None:
    if not seconds:
        return None
    # NumPy interpolates exactly between equal values, so no decile exceeds the median.
    low, median, high = (1000 * np.quantile(seconds, [0.1, 0.5, 0.9])).tolist()
    return FirstToken(median, low, high)


def _leaked(rows: Sequence[Mapping[str, Any]], known: Mapping[str, Demonstration]) -> int:
    """The number of requests whose own text was among their demonstrations."""
    texts: dict[str, str] = {}

    def text_of(name: str) -> str:
        if name not in texts:
            texts[name] = normalise(known[name].instruction) if name in known else ""
        return texts[name]

    return sum(
        any(text_of(name) == normalise(str(row["instruction"])) for name in row["demonstrations"]) for row in rows
    )
